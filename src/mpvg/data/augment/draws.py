"""What is drawn of each image: its window, whether it is mirrored, its operations."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mpvg.data.augment.operations import Operations, draw_operations, numbers_for_operations
from mpvg.data.augment.streams import CROP, FLIP, OPERATIONS, uniforms
from mpvg.data.augmentation import Augmentation

ATTEMPTS = 10


class Crop(NamedTuple):
    """A window of each image, to be resized to the image's size.

    Args:
        boxes: Top, left, height and width in whole pixels, (B, 4) in int64.
        bicubic: Whether the resizing is bicubic, else bilinear, (B,) in bool.
    """

    boxes: Tensor
    bicubic: Tensor


class Drawn(NamedTuple):
    """What is drawn of the images of a batch, in the order in which it is done.

    Args:
        crop: Windows that are resized; None for none.
        offsets: How far down and right a window of the image's size lies, (B, 2) in int64; None for none.
        flip: Whether an image is mirrored, (B,) in bool; None for none.
        operations: Random operations; None for none.
    """

    crop: Crop | None
    offsets: Tensor | None
    flip: Tensor | None
    operations: Operations | None


def draw(augmentation: Augmentation, keys: Tensor, size: tuple[int, int]) -> Drawn:
    """Return what is drawn from keys.

    Args:
        augmentation: The settings.
        keys: The images' keys, (B,) in int64.
        size: Height and width of the images.

    Returns:
        The draws, on the device of the keys.
    """
    text = augmentation.rand_augment
    counts = {CROP: 2 * ATTEMPTS + 5, FLIP: 1, OPERATIONS: 0 if text is None else numbers_for_operations(text)}
    windows, flips, others = uniforms(keys, counts)
    crop = offsets = flip = operations = None
    if augmentation.crop_scale is not None:
        boxes = crop_boxes(windows[:, : 2 * ATTEMPTS + 2], size, augmentation.crop_scale, augmentation.crop_ratio)
        bicubic = windows[:, 2 * ATTEMPTS + 2] >= 0.5
        if augmentation.interpolation != "random":
            bicubic = torch.full_like(bicubic, augmentation.interpolation == "bicubic")
        crop = Crop(boxes, bicubic)
    if augmentation.padding:
        offsets = whole(windows[:, -2:], 2 * augmentation.padding) - augmentation.padding
    if augmentation.flip:
        flip = flips[:, 0] < augmentation.flip
    if text is not None:
        operations = draw_operations(text, others, augmentation.interpolation)
    return Drawn(crop, offsets, flip, operations)


def crop_boxes(
    numbers: Tensor, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Return windows of a random area and ratio: the first of ten tries that fits, or else the largest in the middle.

    Args:
        numbers: From 0 to below 1: of the tries' areas, of their ratios, and two of the place, (B, 22).
        size: Height and width of the images.
        scale: Smallest and largest part of the area.
        ratio: Smallest and largest width by height, uniform in its logarithm.

    Returns:
        Top, left, height and width, (B, 4) in int64.
    """
    heights, widths = rectangles(numbers[:, :ATTEMPTS], numbers[:, ATTEMPTS : 2 * ATTEMPTS], size, scale, ratio)
    fits = (heights > 0) & (widths > 0) & (heights <= size[0]) & (widths <= size[1])
    height, width, fitting = first_fitting(heights, widths, fits)
    middle_height, middle_width = _largest(size, ratio)
    height, width = torch.where(fitting, height, middle_height), torch.where(fitting, width, middle_width)
    top, left = whole(numbers[:, -2], size[0] - height), whole(numbers[:, -1], size[1] - width)
    top = torch.where(fitting, top, (size[0] - middle_height) // 2)
    left = torch.where(fitting, left, (size[1] - middle_width) // 2)
    return torch.stack([top, left, height, width], dim=1)


def rectangles(
    areas: Tensor, ratios: Tensor, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return heights and widths in whole pixels, in float32, whose area and ratio (width by height) are as drawn."""
    area = (scale[0] + areas * (scale[1] - scale[0])) * (size[0] * size[1])
    root = (math.log(ratio[0]) + ratios * (math.log(ratio[1]) - math.log(ratio[0]))).mul(0.5).exp()
    return (area.sqrt() / root).round(), (area.sqrt() * root).round()


def first_fitting(heights: Tensor, widths: Tensor, fits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return height and width of the first try that fits, (B,) in int64, and whether there is one, (B,) in bool."""
    first = fits.int().argmax(dim=1, keepdim=True)
    height, width = heights.gather(1, first).long(), widths.gather(1, first).long()
    return height[:, 0], width[:, 0], fits.any(dim=1)


def whole(numbers: Tensor, most: Tensor | int) -> Tensor:
    """Return whole numbers from 0 up to `most`, in int64, of numbers from 0 to below 1."""
    return (numbers * (most + 1)).long()


def _largest(size: tuple[int, int], ratio: tuple[float, float]) -> tuple[int, int]:
    height, width = size
    if width / height < ratio[0]:
        return max(round(width / ratio[0]), 1), width
    if width / height > ratio[1]:
        return height, max(round(height * ratio[1]), 1)
    return height, width
