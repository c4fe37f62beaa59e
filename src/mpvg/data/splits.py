"""A labelled set in memory, and its splits; what is common to images and sequences, and images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Self


class LabelledSplit(Protocol):
    """Samples with a label each."""

    @property
    def labels(self) -> npt.NDArray[np.int64]: ...

    def __len__(self) -> int: ...

    def take(self, rows: npt.NDArray[np.int64]) -> Self: ...

    def content(self) -> Iterator[bytes]:
        """Yield what tells the split from another, in bytes."""


AnySplit = TypeVar("AnySplit", bound=LabelledSplit)


@dataclass(frozen=True)
class LabelledSet(ABC, Generic[AnySplit]):
    """Splits of labelled samples.

    Args:
        name: What to call it.
        note: Where it is from and what was done to it, in a sentence.
        classes: Names of the classes, by label.
        train: The training split.
        val: The validation split; None where the source has none.
        test: The test split.
        skipped: "path: reason" for each sample that was left out because it could not be read.
    """

    name: str
    note: str
    classes: tuple[str, ...]
    train: AnySplit
    val: AnySplit | None
    test: AnySplit
    skipped: tuple[str, ...] = ()

    @property
    @abstractmethod
    def unit(self) -> str:
        """What the samples are called, in the plural."""

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Training samples of each class."""
        return tuple(np.bincount(self.train.labels, minlength=len(self.classes)).tolist())

    @property
    def imbalance(self) -> float:
        """Training samples of the largest class for each of the smallest."""
        smallest, largest = min(self.class_counts), max(self.class_counts)
        return largest / smallest if smallest else float("inf")


def singular(unit: str) -> str:
    """Return the word for one sample: "image" for "images"."""
    return unit if unit == "series" else unit.removesuffix("s")


AnySet = TypeVar("AnySet", bound=LabelledSet[Any])


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C) as uint8 and labels (N,) as int64."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.int64]) -> Split:
        return Split(self.images[rows], self.labels[rows])

    def content(self) -> Iterator[bytes]:
        """Yield what tells the split from another, in bytes."""
        yield repr(self.images.shape).encode()
        yield self.images.tobytes()
        yield self.labels.tobytes()


@dataclass(frozen=True)
class ImageData(LabelledSet[Split]):
    """A labelled set: splits of one image size; its fields are those of `LabelledSet`."""

    @property
    def unit(self) -> str:
        return "images"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.images.shape[1], self.train.images.shape[2]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.train.images.shape[3]
