"""What models are analysed on, pictures or sequences, as the analysis sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor


class Samples(Protocol):
    """Samples that each model sees by its own preprocessing: `Pictures` or `SequencesSeen`.

    `note` is a sentence on what they are, `count` how many there are, and `classes` are their names, by label.
    """

    @property
    def unit(self) -> str:
        """What they are called, in the plural."""

    @property
    def note(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...

    def batches(
        self, preprocessing: Any, *, count: int | None = None, device: str = "cpu"
    ) -> Iterator[tuple[tuple[Any, ...], Tensor | None]]:
        """Yield the inputs of a model and their labels (B,), None without.

        Args:
            preprocessing: Of the model.
            count: How many of all samples, spread evenly; None for all.
            device: Where the model computes.
        """

    def batch_count(self, preprocessing: Any, *, count: int | None = None) -> int:
        """Return how many `batches` there are."""

    def remarks(self, label: str, preprocessing: Any) -> Sequence[str]:
        """Return sentences on what the preprocessing of a model, called `label`, did to the samples."""


def spread(available: int, wanted: int) -> list[int]:
    """Return the numbers of up to `wanted` of the available samples, spread evenly: files come class by class."""
    return [int(row) for row in np.linspace(0, available - 1, min(available, wanted)).round()] if available else []


def chosen_in_words(chosen: int, available: int, what: str) -> str:
    """Say how many samples of a set are analysed."""
    if chosen == available:
        return f"All {available:,} {what}."
    return f"{chosen:,} of {available:,} {what}, spread evenly."
