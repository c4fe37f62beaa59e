"""Rotations, shears and translations as Pillow does them, for a batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from mpvg.data.augment.interpolation import TRANSFORMING, neighbours

# Pillow cuts off what is behind the point; this keeps a sum such as 127.99999, where all pixels are 128, from that.
_ROUNDING = 2**-10


def slide(images: Tensor, shears: Tensor, amount: Tensor, bicubic: Tensor, *, fill: Tensor) -> Tensor:
    """Move the pixels of each row to the left, those that leave the image being lost.

    A row moves by whole pixels and a part that is the same for all of them, so that four shifted rows make the new one.

    Args:
        images: Images (B, C, H, W) in uint8.
        shears: Whether an image is sheared, else translated, (B,) in bool.
        amount: Pixels a row of a shear; the part of the width of a translation, (B,).
        bicubic: Whether an image is interpolated bicubic, else bilinear, (B,) in bool.
        fill: Colour of what lies outside of the image, (C,) in uint8.

    Returns:
        Images (B, C, H, W) in uint8.
    """
    channels, height, width = images.shape[1:]
    row = torch.arange(height, device=images.device) + 0.5
    shift = (amount[:, None] * torch.where(shears[:, None], row, width))[..., None]
    start, weights = neighbours(shift, bicubic[:, None, None], TRANSFORMING)
    column = torch.arange(-1, width + 2, device=images.device)
    index = (start + column).clamp_(0, width - 1).long()
    shifted = images.float().gather(3, index[:, None].expand(-1, channels, -1, -1))
    sums = shifted[..., :width] * weights[0][:, None]
    for step in range(1, 4):
        sums.addcmul_(shifted[..., step : step + width], weights[step][:, None])
    position = shift + (column[1:-2] + 0.5)
    inside = (position >= 0) & (position < width)
    return torch.where(inside[:, None], _to_levels(sums), fill[:, None, None])


def slide_down(images: Tensor, shears: Tensor, amount: Tensor, bicubic: Tensor, *, fill: Tensor) -> Tensor:
    """Do to columns what `slide` does to rows: move their pixels up."""
    return slide(images.mT, shears, amount, bicubic, fill=fill).mT


def rotate(images: Tensor, degrees: Tensor, bicubic: Tensor, *, fill: Tensor) -> Tensor:
    """Rotate each image around its middle.

    Args:
        images: Images (B, C, H, W) in uint8.
        degrees: How far, counter-clockwise, (B,).
        bicubic: Whether an image is interpolated bicubic, else bilinear, (B,) in bool.
        fill: Colour of what lies outside of the image, (C,) in uint8.

    Returns:
        Images (B, C, H, W) in uint8.
    """
    height, width = images.shape[2:]
    angle = torch.deg2rad(degrees)[:, None]
    cos, sin = angle.cos(), angle.sin()
    pixel = torch.arange(height * width, device=images.device)
    down, right = pixel // width + (0.5 - height / 2), pixel % width + (0.5 - width / 2)
    x, y = cos * right - sin * down + width / 2, sin * right + cos * down + height / 2
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    columns, across = _all_neighbours(x, width, bicubic[:, None])
    rows, along = _all_neighbours(y, height, bicubic[:, None])
    index = (rows[:, :, None] * width + columns[:, None]).flatten(1).long()
    weights = (along[:, :, None] * across[:, None]).flatten(1, 2)
    parts = images.flatten(2).float().gather(2, index[:, None].expand(-1, images.shape[1], -1))
    sums = parts.unflatten(2, weights.shape[1:]).mul_(weights[:, None]).sum(dim=2)
    return torch.where(inside[:, None], _to_levels(sums), fill[:, None]).view_as(images)


def _all_neighbours(position: Tensor, size: int, bicubic: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four places around each position, those of the border repeated, and their weights, (B, 4, ...)."""
    start, weights = neighbours(position - 0.5, bicubic, TRANSFORMING)
    places = torch.stack([start - 1, start, start + 1, start + 2], dim=1)
    return places.clamp_(0, size - 1), torch.stack(weights, dim=1)


def _to_levels(sums: Tensor) -> Tensor:
    return sums.add_(_ROUNDING).clamp_(0, 255).to(torch.uint8)
