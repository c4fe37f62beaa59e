"""What a set for dense tasks offers, in whichever layout it lies."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from mpvg.data.images import Size
from mpvg.data.large.split import LargeData, LargeSplit

Truth = TypeVar("Truth", covariant=True)
ClassMap = npt.NDArray[np.uint8]  # labels (H, W), IGNORED where there is none


class Objects(NamedTuple):
    """The objects of an image, in pixels of the image as it is stored.

    Args:
        image_id: The image's number in its set.
        size: Its height and width.
        boxes: (N, 4) as x1, y1, x2, y2, as annotated.
        labels: (N,) from 1.
        masks: (N, H, W), one inside.
        areas: (N,) in square pixels, as annotated.
        crowds: Whether each is a crowd (N,).
    """

    image_id: int
    size: Size
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    masks: npt.NDArray[np.uint8]
    areas: npt.NDArray[np.float64]
    crowds: npt.NDArray[np.bool_]


class DenseSplit(LargeSplit, Generic[Truth]):
    """Images that are read one by one together with what is to be found in them."""

    @abstractmethod
    def sample(self, index: int) -> tuple[Image.Image, Truth]:
        """Return an image and what is in it; BadImageError names a file that cannot be read."""


class Repeated(DenseSplit[Truth]):
    """A split of which an epoch has each image several times.

    Args:
        split: The split.
        repeats: How often.
    """

    def __init__(self, split: DenseSplit[Truth], repeats: int) -> None:
        super().__init__(count=repeats * len(split), labels=None, skip_bad_images=split.skip_bad_images)
        self._split = split
        self.skipped = split.skipped  # one account of a set

    def sample(self, index: int) -> tuple[Image.Image, Truth]:
        return self._split.sample(index % len(self._split))

    def read(self, index: int) -> Image.Image:
        return self._split.read(index % len(self._split))

    def where(self, index: int) -> str:
        return self._split.where(index % len(self._split))

    def parts(self) -> list[str]:
        return self._split.parts()


@dataclass(frozen=True)
class DenseData(LargeData):
    """A set for dense tasks.

    Args:
        category_ids: The set's own numbers of its classes, by the place of `classes`; they are what results are written
            with.
    """

    category_ids: tuple[int, ...] = ()
