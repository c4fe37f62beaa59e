"""Random windows of images, as Pillow cuts and resizes them, for a batch at a time."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from mpvg.data.augment.interpolation import RESIZING, neighbours

# With weights in whole multiples of this, and pixels of 8 bits, float32 adds up without rounding: the order of the sum,
# which differs between devices and sizes of a batch, changes nothing.
_WEIGHT_UNIT = 2**-15


def cut_and_resize(images: Tensor, boxes: Tensor, bicubic: Tensor, flip: Tensor | None = None) -> Tensor:
    """Cut a box out of each image and resize it to the image's size as Pillow does: two matrix products.

    Args:
        images: Images (B, C, H, W) in uint8.
        boxes: Top, left, height and width in whole pixels, (B, 4).
        bicubic: Whether an image is interpolated bicubic, else bilinear, (B,) in bool.
        flip: Whether the result is mirrored, (B,) in bool; None for none.

    Returns:
        Images (B, C, H, W) in uint8.
    """
    height, width = images.shape[2:]
    mirrored = torch.zeros_like(bicubic) if flip is None else flip
    top, left, rows, columns = boxes.unbind(1)
    across = _weights(left, columns, width, 2 * mirrored + bicubic)
    down = _weights(top, rows, height, bicubic)[:, None]
    halfway = _to_levels(images.float().flatten(1, 2) @ across.mT).floor_()
    return _to_levels(down @ halfway.unflatten(1, images.shape[1:3])).to(torch.uint8)


def shift(images: Tensor, offsets: Tensor, flip: Tensor | None = None) -> Tensor:
    """Move each image by whole pixels, black where nothing is left, and mirror it where asked.

    Args:
        images: Images (B, C, H, W) in uint8.
        offsets: How far down and right the window lies, (B, 2) in int64.
        flip: Whether the result is mirrored, (B,) in bool; None for none.

    Returns:
        Images (B, C, H, W) in uint8.
    """
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) + offsets[:, :1]
    columns = _columns(width, flip, images.device) + offsets[:, 1:]
    framed = pad(images, (1, 1, 1, 1))  # its frame stands for all that is outside
    rows, columns = (rows + 1).clamp(0, height + 1), (columns + 1).clamp(0, width + 1)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return framed[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def mirror(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror the images (B, C, H, W) where asked, (B,) in bool."""
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def _columns(width: int, flip: Tensor | None, device: torch.device) -> Tensor:
    columns = torch.arange(width, device=device)[None]
    return columns if flip is None else torch.where(flip[:, None], width - 1 - columns, columns)


def _weights(start: Tensor, length: Tensor, size: int, way: Tensor) -> Tensor:
    """Return how much each pixel of a side gives to each pixel of the result.

    Args:
        start: First pixel of each box, (B,) in int64.
        length: Its pixels, (B,) in int64.
        size: Pixels of the side, and of the result.
        way: Which of the `_all_weights`: 0 bilinear, 1 bicubic, and the same mirrored, (B,).

    Returns:
        Weights (B, pixels of the result, pixels).
    """
    row = size * way + length - 1
    source, weights = (part.index_select(0, row) for part in _all_weights(size, start.device))
    # A frame of two pixels more on each side takes the weights of 0 that lie outside.
    framed = torch.zeros(len(start), size, size + 4, device=start.device)
    return framed.scatter_(2, source + (start[:, None, None] + 2), weights)[..., 2:-2]


@lru_cache
def _all_weights(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the weights for boxes of every length from 1 to `size`, which is all that they hang on.

    A box is never larger than the result, so that four pixels (two, if bilinear) give all there is to a pixel, and
    nothing is antialiased.

    Returns:
        Pixels, counted from the box's first, and their weights, (4 x size, pixels of the result, 4) each: bilinear
        by length, bicubic, and both mirrored.
    """
    length = torch.arange(1, size + 1, device=device)[:, None]
    centre = (torch.arange(size, device=device) + 0.5) * (length / size)
    bicubic = torch.tensor([[[False]], [[True]]], device=device)
    first, four = neighbours((centre - 0.5).expand(2, -1, -1), bicubic, RESIZING)
    source = first[..., None] + torch.arange(-1, 3, device=device)
    weights = torch.stack(four, dim=-1) * ((source >= 0) & (source < length[..., None]))
    weights = (weights / (weights.sum(dim=-1, keepdim=True) * _WEIGHT_UNIT)).round() * _WEIGHT_UNIT
    both = source.long().flatten(0, 1), weights.flatten(0, 1)
    source, weights = (torch.cat([part, part.flip(1)]) for part in both)
    return source, weights


def _to_levels(values: Tensor) -> Tensor:
    """Return values whose whole part is the level of uint8, in place; those in the middle go up, as Pillow's."""
    return values.add_(0.5).clamp_(0, 255)
