"""What stands between a labelled set and a model, whatever the set is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from mpvg.compare.settings import Settings
from mpvg.create import Start
from mpvg.data.splits import LabelledSet

Inputs = tuple[Tensor, ...]  # what the model is called with: images alone, or sequences and which places are real


class Feed(Protocol):
    """Turns the samples of one run into what its model is given.

    Attributes:
        model_arguments: What the model must know of the samples to be built.
    """

    model_arguments: dict[str, Any]

    def place(self, split: Any) -> Any:
        """Return a split in the form that the methods below take, on the device."""

    def batches(self, placed: Any, *, batch_size: int, seed: int, epoch: int) -> Iterator[Any]:
        """Yield one epoch of full batches, in an order that depends on seed and epoch alone."""

    def prepare(self, batch: Any, *, seed: int, epoch: int) -> tuple[Inputs, Tensor]:
        """Return what a training step gives the model, and its targets."""

    def readings(self, placed: Any) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield all of a split for evaluation, with its labels."""

    def sample(self, placed: Any) -> Inputs:
        """Return one batch, spread over a split."""

    def shuffled(self, placed: Any) -> Any:
        """Return a split whose samples have their tokens in random order; None where that is not looked at."""

    def card(self, settings: Settings, *, scheme: str, seed: int, start: Start, classes: tuple[str, ...]) -> Any:
        """Return the card of a trained model."""


def feed_of(settings: Settings, data: LabelledSet, train: Any, *, start: Start, device: str = "cpu") -> Feed:
    """Return the feed of one run.

    Args:
        settings: The configuration.
        data: The labelled set.
        train: The part of it that is trained on.
        start: What the model starts from.
        device: Where to compute.
    """
    if settings.sequences is None:
        from mpvg.compare.images import ImageFeed

        return ImageFeed(settings, data, train, start=start, device=device)  # type: ignore[arg-type]
    from mpvg.compare.sequences import SequenceFeed

    return SequenceFeed(settings, data, train, device=device)  # type: ignore[arg-type]
