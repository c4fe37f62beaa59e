"""Random erasing: a rectangle of a normalised image gives way to noise, as timm does it."""

from __future__ import annotations

import torch
from torch import Tensor

from mpvg.data.augment.chosen import on_chosen
from mpvg.data.augment.draws import ATTEMPTS, first_fitting, rectangles, whole
from mpvg.data.augment.streams import ERASING, NOISE, normal, uniform

AREA = (0.02, 1 / 3)
RATIO = (0.3, 1 / 0.3)
_AT_ONCE = 2**22  # numbers of noise, so that large images do not fill the memory with hashes


@torch.no_grad()
def erase(images: Tensor, probability: float, keys: Tensor) -> Tensor:
    """Replace a rectangle of some images by noise, N(0, 1) in each value; each image on its own random stream.

    Args:
        images: Normalised images (B, C, H, W) in floating point.
        probability: That an image is erased from.
        keys: The images' keys from `streams.keys`, (B,) in int64, on the same device.

    Returns:
        Images (B, C, H, W).
    """
    if probability == 0:
        return images
    boxes, chosen = draw_erasing(keys, (images.shape[2], images.shape[3]), probability)
    at_once = max(_AT_ONCE // (images.shape[1] * _most_pixels(images)), 1)
    return on_chosen(_noised, chosen, images.clone(), boxes, keys, at_once=at_once)


def draw_erasing(keys: Tensor, size: tuple[int, int], probability: float) -> tuple[Tensor, Tensor]:
    """Return the rectangles to erase: 2 % to a third of the area, the first of ten tries smaller than the image.

    Args:
        keys: The images' keys, (B,) in int64.
        size: Height and width of the images.
        probability: That an image is erased from.

    Returns:
        Top, left, height and width, (B, 4) in int64, and whether an image is erased from, (B,) in bool.
    """
    numbers = uniform(keys, 2 * ATTEMPTS + 3, purpose=ERASING)
    heights, widths = rectangles(numbers[:, :ATTEMPTS], numbers[:, ATTEMPTS : 2 * ATTEMPTS], size, AREA, RATIO)
    height, width, fitting = first_fitting(heights, widths, (heights < size[0]) & (widths < size[1]))
    top, left = whole(numbers[:, -3], size[0] - height), whole(numbers[:, -2], size[1] - width)
    return torch.stack([top, left, height, width], dim=1), fitting & (numbers[:, -1] < probability)


def _noised(images: Tensor, boxes: Tensor, keys: Tensor) -> Tensor:
    """Fill each image's rectangle with its noise, whose values are numbered within the rectangle."""
    channels, rows, columns = images.shape[1:]
    noise = normal(keys, channels * _most_pixels(images), purpose=NOISE).view(len(images), channels, -1)
    top, left, height, width = boxes[:, :, None, None].unbind(1)
    y = torch.arange(rows, device=images.device)[:, None] - top
    x = torch.arange(columns, device=images.device) - left
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    number = torch.where(inside, y * width + x, 0).flatten(1)[:, None]
    values = noise.gather(2, number.expand(-1, channels, -1)).view_as(images).to(images.dtype)
    return torch.where(inside[:, None], values, images)


def _most_pixels(images: Tensor) -> int:
    """Return how many pixels a rectangle has at most: a third of the image, and what rounding adds on two sides."""
    height, width = images.shape[2:]
    return min(height * width, int(AREA[1] * height * width + (height + width) / 2) + 1)
