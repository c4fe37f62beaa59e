"""From a picture and its objects to what a detector is trained or evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mpvg.data.dense.sizes import fitted
from mpvg.data.dense.split import Objects
from mpvg.data.images import Size

_FLIPPED, _CROPPED = 0.5, 0.5  # parts of the images
_BEFORE_CROP = (400, 500, 600)  # short sides
_CROP = (384, 600)  # smallest and largest side
_LARGEST = 1024  # side


class DetectionBatch(NamedTuple):
    """Images with their objects.

    Args:
        images: Pixels (3, h, w) in uint8, each of its own size.
        targets: In training tensors, in pixels of these images: boxes (N, 4) as x1, y1, x2, y2 in float32, labels (N,)
            from 1, masks (N, h, w) in uint8, area (N,), iscrowd (N,) of zeros, image_id () and size, the height and
            width of the image as it is stored. In evaluation arrays with the same names, as annotated, in pixels of the
            image as it is stored; crowds are among them.
        positions: Which draws of the epoch these are (B,); of images that are evaluated, their numbers.
    """

    images: list[Tensor]
    targets: list[dict[str, Any]]
    positions: Tensor


class Seen(NamedTuple):
    """An image and its objects on the way through the transforms.

    Args:
        pixels: (3, h, w) in uint8.
        boxes: (N, 4) as x1, y1, x2, y2 in float64.
        masks: (N, h, w) in uint8.
    """

    pixels: Tensor
    boxes: Tensor
    masks: Tensor

    @property
    def size(self) -> Size:
        height, width = self.pixels.shape[-2:]
        return height, width


@dataclass(frozen=True)
class DetectionAugmentation:
    """What is drawn of a training image: a flip, a size, and maybe a crop between two sizes.

    Args:
        scales: Short sides to draw from, in pixels.
        max_long: What the long side may have at most.
        crop: Crop half of the images, to sides of 384 to 600 pixels of a short side of 400, 500 or 600, before they are
            resized, and none to more than 1024.
    """

    scales: tuple[int, ...]
    max_long: int
    crop: bool

    def __call__(
        self, image: Image.Image, objects: Objects, random: np.random.Generator
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the pixels and the objects of an image, in the form of `DetectionBatch`."""
        learned = ~objects.crowds
        labels = torch.from_numpy(objects.labels[learned])
        boxes, masks = torch.from_numpy(objects.boxes[learned]), torch.from_numpy(objects.masks[learned])
        seen = Seen(F.pil_to_tensor(image), _within(boxes, objects.size), masks)
        if random.random() < _FLIPPED:
            seen = flipped(seen)
        if self.crop and random.random() < _CROPPED:
            seen = self._resized(seen, _BEFORE_CROP, random)
            seen = _cropped(seen, _CROP, random)
        seen = self._resized(seen, self.scales, random)
        if self.crop:
            seen = _cropped(seen, (_LARGEST, _LARGEST), random)
        boxes = seen.boxes.float()  # in which sides of next to nothing are nothing
        there = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & seen.masks.flatten(1).bool().any(dim=1)
        masks = seen.masks[there]
        return seen.pixels, {
            "boxes": boxes[there],
            "labels": labels[there],
            "masks": masks,
            "area": masks.flatten(1).sum(dim=1).float(),
            "iscrowd": torch.zeros(len(masks), dtype=torch.int64),
            "image_id": torch.tensor(objects.image_id),
            "size": objects.size,
        }

    def _resized(self, seen: Seen, scales: Sequence[int], random: np.random.Generator) -> Seen:
        short = scales[int(random.integers(len(scales)))]
        return resized(seen, fitted(seen.size, short=short, long=self.max_long))


@dataclass(frozen=True)
class DetectionEvaluation:
    """What an image is evaluated at.

    Args:
        scale: Short side in pixels.
        max_long: What the long side may have at most.
    """

    scale: int
    max_long: int

    def __call__(
        self, image: Image.Image, objects: Objects, random: np.random.Generator
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the pixels of an image, and its objects as they are annotated."""
        size = fitted((image.height, image.width), short=self.scale, long=self.max_long)
        return resized_pixels(F.pil_to_tensor(image), size), {
            "boxes": objects.boxes,
            "labels": objects.labels,
            "masks": objects.masks,
            "area": objects.areas,
            "iscrowd": objects.crowds.astype(np.int64),
            "image_id": objects.image_id,
            "size": objects.size,
        }


def detection_batch(samples: Sequence[tuple[Tensor, dict[str, Any]]], positions: Tensor) -> DetectionBatch:
    """Return a batch of what either transform gives."""
    images, targets = zip(*samples, strict=True)
    return DetectionBatch(list(images), list(targets), positions)


def flipped(seen: Seen) -> Seen:
    """Turn an image's left to its right."""
    width = seen.size[1]
    boxes = torch.stack([width - seen.boxes[:, 2], seen.boxes[:, 1], width - seen.boxes[:, 0], seen.boxes[:, 3]], dim=1)
    return Seen(seen.pixels.flip(-1), boxes, seen.masks.flip(-1))


def resized(seen: Seen, size: Size) -> Seen:
    """Resize an image, bilinearly, and its objects, whose masks take the nearest pixel."""
    if size == seen.size:
        return seen
    factors = torch.tensor([new / old for new, old in zip(size[::-1] * 2, seen.size[::-1] * 2, strict=True)])
    masks = seen.masks.new_zeros((0, *size))
    if len(seen.masks):
        masks = F.resize(seen.masks, list(size), InterpolationMode.NEAREST_EXACT)
    return Seen(resized_pixels(seen.pixels, size), _within(seen.boxes * factors.double(), size), masks)


def resized_pixels(pixels: Tensor, size: Size) -> Tensor:
    """Resize pixels (3, H, W), bilinearly and with antialiasing."""
    return F.resize(pixels, list(size), InterpolationMode.BILINEAR, antialias=True)


def cropped(seen: Seen, corner: tuple[int, int], size: Size) -> Seen:
    """Cut a rectangle out of an image; boxes are clipped to it, and may be left without area.

    Args:
        seen: The image.
        corner: Top and left.
        size: Height and width.
    """
    top, left = corner
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    boxes = seen.boxes - torch.tensor([left, top, left, top])
    return Seen(seen.pixels[:, rows, columns], _within(boxes, size), seen.masks[:, rows, columns])


def _cropped(seen: Seen, sides: tuple[int, int], random: np.random.Generator) -> Seen:
    size = [int(random.integers(min(side, sides[0]), min(side, sides[1]), endpoint=True)) for side in seen.size]
    corner = [int(random.integers(side - new, endpoint=True)) for side, new in zip(seen.size, size, strict=True)]
    return cropped(seen, (corner[0], corner[1]), (size[0], size[1]))


def _within(boxes: Tensor, size: Size) -> Tensor:
    limits = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return torch.minimum(boxes.clamp(min=0), limits)
