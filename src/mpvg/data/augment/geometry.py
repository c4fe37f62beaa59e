"""Rotations, shears and translations as Pillow does them, for a batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

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
    return _to_levels(torch.where(inside[:, None], sums, fill[:, None, None]))


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
    angle = torch.deg2rad(degrees)[:, None, None]
    cos, sin = angle.cos(), angle.sin()
    down = torch.arange(height, device=images.device)[:, None] + (0.5 - height / 2)
    right = torch.arange(width, device=images.device) + (0.5 - width / 2)
    x = (cos * right - sin * down + width / 2).flatten(1)
    y = (sin * right + cos * down + height / 2).flatten(1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    columns, across = _all_neighbours(x, width, bicubic[:, None])
    rows, along = _all_neighbours(y, height, bicubic[:, None])
    image = torch.arange(len(images), dtype=torch.int32, device=images.device)[:, None, None]
    pixels = ((image * height + rows) * width)[:, :, None] + columns[:, None]
    weights = along[:, :, None] * across[:, None]
    # Made to add up the words of a text, this takes all channels of a pixel at once.
    sums = embedding_bag(
        pixels.flatten(1, 2).mT.flatten(0, 1),
        images.float().movedim(1, -1).flatten(0, 2),
        per_sample_weights=weights.flatten(1, 2).mT.flatten(0, 1),
        mode="sum",
    )
    sums = sums.view(len(images), -1, images.shape[1]).mT.contiguous()
    return _to_levels(torch.where(inside[:, None], sums, fill[:, None])).view_as(images)


def _all_neighbours(position: Tensor, size: int, bicubic: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four places around each position, those of the border repeated, and their weights, (B, 4, ...)."""
    start, weights = neighbours(position - 0.5, bicubic, TRANSFORMING)
    places = torch.stack([start - 1, start, start + 1, start + 2], dim=1)
    return places.clamp_(0, size - 1).int(), torch.stack(weights, dim=1)


def _to_levels(sums: Tensor) -> Tensor:
    return sums.add_(_ROUNDING).clamp_(0, 255).to(torch.uint8)
