"""A labelled set of images in memory, and its splits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C) as uint8 and labels (N,) as int64."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.int64]) -> Split:
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class ImageData:
    """A labelled set: splits of one image size.

    Args:
        name: What to call it.
        note: Where it is from and what was done to it, in a sentence.
        classes: Names of the classes, by label.
        train: The training split.
        val: The validation split; None where the source has none.
        test: The test split.
        skipped: "path: reason" for each image that was left out because it could not be read.
    """

    name: str
    note: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split
    skipped: tuple[str, ...] = ()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.images.shape[1], self.train.images.shape[2]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.train.images.shape[3]

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Training images of each class."""
        return tuple(np.bincount(self.train.labels, minlength=len(self.classes)).tolist())

    @property
    def imbalance(self) -> float:
        """Training images of the largest class for each of the smallest."""
        smallest, largest = min(self.class_counts), max(self.class_counts)
        return largest / smallest if smallest else float("inf")
