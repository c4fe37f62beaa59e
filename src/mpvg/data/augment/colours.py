"""Operations on colours as Pillow does them, for a batch at a time."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from mpvg.data.augment.chosen import on_chosen
from mpvg.data.augment.kinds import Kind

_LUMA = (19595, 38470, 7471)  # of 65,536
_SMOOTH_CENTRE, _SMOOTH_SUM = 5, 13


def look_up(images: Tensor, kind: Tensor, argument: Tensor) -> Tensor:
    """Do the operations that make of each value another one, whatever its place: one table of 256 values a channel.

    Args:
        images: Images (B, C, H, W) in uint8.
        kind: Which operation, one of `LOOKED_UP`, (B,).
        argument: Its argument, (B,).

    Returns:
        Images (B, C, H, W) in uint8.
    """
    plain = _plain_tables(images.device)[kind, argument.long().clamp_(0, 256)]
    tables = plain[:, None].expand(-1, images.shape[1], -1).contiguous()
    blended = (kind == Kind.BRIGHTNESS) | (kind == Kind.CONTRAST)
    tables = on_chosen(_contrasted, blended, tables, images, kind == Kind.CONTRAST, argument)
    tables = on_chosen(_stretched, kind == Kind.AUTO_CONTRAST, tables, images)
    tables = on_chosen(_equalized, kind == Kind.EQUALIZE, tables, images)
    return tables.gather(2, images.flatten(2).long()).view_as(images)


@lru_cache
def _plain_tables(device: torch.device) -> Tensor:
    """Return the tables, in uint8, of the operations that look at neither an image nor a factor.

    Returns:
        By kind and by argument, (kinds, 257, 256); without meaning for the others.
    """
    value, whole = torch.arange(256, device=device), torch.arange(257, device=device)[:, None]
    tables = torch.where(value < whole, value, 255 - value).repeat(len(Kind), 1, 1)  # inverts all where it is 0
    tables[Kind.POSTERIZE] = value & -(1 << (8 - whole.clamp(0, 8)))
    tables[Kind.SOLARIZE_ADD] = (value + whole * (value < 128)).clamp_(max=255)
    return tables.to(torch.uint8)


def colour(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image (B, C, H, W) in uint8 with itself in grey, by a factor (B,): 0 is grey, 1 the image."""
    return blend(grey(images), images, factor[:, None, None, None])


def sharpen(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image (B, C, H, W) in uint8 with itself smoothed, by a factor (B,): 0 is smooth, 1 the image."""
    return blend(smooth(images), images, factor[:, None, None, None])


def blend(first: Tensor, second: Tensor, factor: Tensor) -> Tensor:
    """Return first + factor x (second - first), from 0 to 255 and cut off, in uint8."""
    first, second = first.float(), second.float()
    return (first + factor * (second - first)).clamp(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) in uint8 in grey, (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.int().unbind(1)
    return ((red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 2**15) >> 16).to(torch.uint8)[:, None]


def mean_grey(images: Tensor) -> Tensor:
    """Return the mean of each image in grey, rounded, (B,) in int64."""
    pixels = images.shape[2] * images.shape[3]
    return (2 * grey(images).sum(dim=(1, 2, 3)) + pixels) // (2 * pixels)


def smooth(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) in uint8 as Pillow's SMOOTH leaves them, with an untouched border."""
    if min(images.shape[2:]) < 3:
        return images
    values = images.float()
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + (_SMOOTH_CENTRE - 1) * values[..., 1:-1, 1:-1]
    smoothed = images.clone()
    smoothed[..., 1:-1, 1:-1] = (sums / _SMOOTH_SUM).round()
    return smoothed


def _contrasted(tables: Tensor, images: Tensor, contrast: Tensor, factor: Tensor) -> Tensor:
    """Return the tables of Contrast, a blend with the mean of the image in grey, and Brightness, one with black."""
    value = torch.arange(256, device=images.device)
    other = (mean_grey(images) * contrast)[:, None, None]
    return blend(other, value, factor[:, None, None]).expand_as(tables)


def _stretched(tables: Tensor, images: Tensor) -> Tensor:
    """Return the tables of AutoContrast: the smallest value becomes 0, the largest 255."""
    value = torch.arange(256, device=images.device)
    low, high = (part[..., None].double() for part in images.flatten(2).aminmax(dim=2))
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    stretched = (value * scale - low * scale).clamp(0, 255)
    return torch.where(high > low, stretched, value).to(torch.uint8)


def _equalized(tables: Tensor, images: Tensor) -> Tensor:
    """Return the tables of Equalize: each part of the values about as many pixels."""
    counts = histograms(images)
    last = counts.gather(2, images.flatten(2).amax(dim=2, keepdim=True).long())
    step = (images.shape[2] * images.shape[3] - last) // 255
    before = counts.cumsum(dim=2) - counts
    equal = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, equal, torch.arange(256, device=images.device)).to(torch.uint8)


def histograms(images: Tensor) -> Tensor:
    """Return how many pixels of each channel have each value, (B, C, 256) in int64."""
    batch, channels = images.shape[:2]
    offsets = 256 * torch.arange(batch * channels, device=images.device)
    index = (images.flatten(2).flatten(0, 1) + offsets[:, None]).flatten()
    counts = torch.zeros(batch * channels * 256, dtype=torch.int64, device=images.device)
    return counts.scatter_add_(0, index, torch.ones_like(index)).view(batch, channels, 256)
