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
    weights = _weights(boxes, (height, width), bicubic, flip)
    across, down = weights[1, :, :width, :width], weights[0, :, None, :height, :height]
    rows = _to_levels(images.float().flatten(1, 2) @ across.mT).floor_()
    return _to_levels(down @ rows.unflatten(1, images.shape[1:3])).to(torch.uint8)


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


def _weights(boxes: Tensor, size: tuple[int, int], bicubic: Tensor, flip: Tensor | None) -> Tensor:
    """Return how much each pixel of a side gives to each pixel of the result.

    A box is never larger than the result, so that four pixels (two, if bilinear) give all there is to a pixel, and
    nothing is antialiased.

    Returns:
        Weights (2, B, pixels of the result, pixels), of rows first, as many as the longer side has; then of columns.
    """
    start, length = boxes.mT[:2, :, None, None], boxes.mT[2:, :, None, None]
    longest, device = max(size), boxes.device
    result = torch.arange(longest, device=device).expand(2, len(boxes), -1)
    if flip is not None:
        result = torch.stack([result[0], torch.where(flip[:, None], size[1] - 1 - result[1], result[1])])
    centre = (result + 0.5) * (length / _sides(size, device))[..., 0] + start[..., 0]
    first, four = neighbours(centre - 0.5, bicubic[:, None], RESIZING)
    source = first[..., None] + torch.arange(-1, 3, device=device)
    weights = torch.stack(four, dim=-1) * ((source >= start) & (source < start + length))
    weights = (weights / (weights.sum(dim=-1, keepdim=True) * _WEIGHT_UNIT)).round() * _WEIGHT_UNIT
    # Two pixels more on each side, and those beyond the shorter side, have a weight of 0.
    framed = torch.zeros(2, len(boxes), longest, longest + 4, device=device)
    return framed.scatter_(3, (source + 2).clamp_(0, longest + 3).long(), weights)[..., 2:-2]


@lru_cache
def _sides(size: tuple[int, int], device: torch.device) -> Tensor:
    return torch.tensor(size, device=device)[:, None, None, None]


def _to_levels(values: Tensor) -> Tensor:
    """Return values whose whole part is the level of uint8, in place; those in the middle go up, as Pillow's."""
    return values.add_(0.5).clamp_(0, 255)
