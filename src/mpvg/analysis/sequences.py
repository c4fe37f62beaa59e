"""The sentences or series that models are analysed on: the test split of a labelled set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from mpvg.analysis.samples import chosen_in_words, spread
from mpvg.data.sequences import Items, SequenceData, Sequences, load_series, load_text
from mpvg.data.sequences.batches import eval_batches, shuffled
from mpvg.data.sequences.preprocessing import SeriesPreprocessing, TextPreprocessing
from mpvg.errors import UserError

SequencePreprocessing: TypeAlias = TextPreprocessing | SeriesPreprocessing


@dataclass(frozen=True)
class InRandomOrder:
    """A preprocessing that puts each sequence's tokens in a random order, as its model was trained on them.

    Args:
        preprocessing: Of the model.
    """

    preprocessing: SequencePreprocessing

    def __call__(self, items: Items) -> list[Tensor]:
        """Return ids (T,) or series (T, C), as `preprocessing` gives them but for their order."""
        step = getattr(self.preprocessing, "patch_size", 1)
        return shuffled(self.preprocessing(items), patch_size=step)

    def count_cut(self, items: Items) -> int:
        """Return how many are longer than what is kept of them."""
        return self.preprocessing.count_cut(items)


@dataclass(frozen=True)
class SequencesSeen:
    """Sentences or series with labels.

    Args:
        note: What they are, in a sentence.
        unit: "sentences" or "series".
        split: They and their labels.
        classes: Names of the classes.
    """

    note: str
    unit: str
    split: Sequences
    classes: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.split)

    def batches(
        self, preprocessing: SequencePreprocessing | InRandomOrder, *, count: int | None = None, device: str = "cpu"
    ) -> Iterator[tuple[tuple[Tensor, Tensor | None], Tensor]]:
        """Yield sequences of similar length, ids (B, T) or series (B, T, C), with their mask, and labels (B,).

        Args:
            preprocessing: Of the model.
            count: How many of all, spread evenly; None for all.
            device: Where the model computes.
        """
        items = preprocessing(self.split.items)  # all: what is drawn for one is by its number among them
        rows = spread(self.count, self.count if count is None else count)
        labels = torch.from_numpy(self.split.labels)[rows]
        for x, mask, of_batch, _ in eval_batches([items[row] for row in rows], labels):
            yield (x.to(device), None if mask is None else mask.to(device)), of_batch

    def batch_count(self, preprocessing: SequencePreprocessing | InRandomOrder, *, count: int | None = None) -> int:
        """Return how many `batches` there are."""
        return sum(1 for _ in self.batches(preprocessing, count=count))

    def remarks(self, label: str, preprocessing: SequencePreprocessing | InRandomOrder) -> list[str]:
        """Return sentences on what the preprocessing of a model, called `label`, did to them."""
        found = []
        if cut := preprocessing.count_cut(self.split.items):
            found.append(f"For {label}, {cut:,} of {self.count:,} {self.unit} are cut to the length that it takes.")
        if isinstance(preprocessing, InRandomOrder):
            found.append("The tokens of each are in a random order, as in training (--shuffle-tokens).")
        return found


def load_sequences(
    source: Sequence[str], *, task: str, count: int, channels: int | None, impute: bool
) -> SequencesSeen:
    """Load the sentences or series to analyse on.

    Args:
        source: As `mpvg compare --task` takes them: of text one folder or name, of series files or a name.
        task: "text" or "series".
        count: How many of the test split, spread evenly over it; all where there are fewer.
        channels: Of the series that the models take; None for text.
        impute: Fill in missing values of series.

    Returns:
        The sequences.

    Raises:
        UserError: There are none, they cannot be read, or they have other channels.
    """
    data = _load(source, task, impute=impute)
    if data.channels != channels:
        raise UserError(
            f"--data {' '.join(source)}: series of {data.channels} channels, and the model takes {channels}: name "
            "series such as it was trained on."
        )
    if not len(data.test):
        raise UserError(f"--data {' '.join(source)}: {data.name} has no test {data.unit}: name a set that has some.")
    rows = np.array(spread(len(data.test), count))
    note = chosen_in_words(len(rows), len(data.test), f"test {data.unit} of {data.name}")
    return SequencesSeen(note, data.unit, data.test.take(rows), data.classes)


def _load(source: Sequence[str], task: str, *, impute: bool) -> SequenceData:
    if task == "series":
        return load_series(source, impute=impute)
    if len(source) != 1:
        raise UserError(f"--data {' '.join(source)}: sentences come from one folder: name it alone.")
    return load_text(source[0])
