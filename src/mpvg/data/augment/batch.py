"""Augmentation of a batch of images on the device where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from mpvg.data.augment import colours, crops, geometry
from mpvg.data.augment.chosen import on_chosen
from mpvg.data.augment.draws import Drawn, draw
from mpvg.data.augment.kinds import LOOKED_UP, Kind
from mpvg.data.augment.operations import Operations
from mpvg.data.augmentation import Augmentation

_AT_ONCE = 2**19  # values that are rotated at once, for what their 16 neighbours need of memory


@torch.no_grad()
def augment(pixels: Tensor, augmentation: Augmentation, keys: Tensor, *, fill: Sequence[float]) -> Tensor:
    """Draw and do the crop, the flip and the random operations of each image, each on its own random stream.

    `shift`, erasing, repeats and mixing are none of its business.

    Args:
        pixels: Images (B, C, H, W) in uint8 of 1 or 3 channels.
        augmentation: The settings.
        keys: The images' keys from `streams.keys`, (B,) in int64, on the same device.
        fill: Colour from 0 to 1 by channel of what rotations, shears and translations bring in: the data's mean.

    Returns:
        Images (B, C, H, W) in uint8.

    Raises:
        UserError: `rand_augment` asks for an operation that is not done here.
    """
    return apply(pixels, draw(augmentation, keys, (pixels.shape[2], pixels.shape[3])), fill=fill)


@torch.no_grad()
def apply(pixels: Tensor, drawn: Drawn, *, fill: Sequence[float]) -> Tensor:
    """Do what was drawn.

    Args:
        pixels: Images (B, C, H, W) in uint8 of 1 or 3 channels.
        drawn: What `draw` gave for these images.
        fill: Colour from 0 to 1 by channel of what rotations, shears and translations bring in.

    Returns:
        Images (B, C, H, W) in uint8.
    """
    assert pixels.dtype == torch.uint8, pixels.dtype
    assert pixels.shape[1] == len(fill), (pixels.shape, fill)
    with _no_autocast(pixels.device.type):
        given, pixels = pixels, _windows(pixels, drawn)
        if drawn.operations is not None:
            pixels = pixels.clone() if pixels is given else pixels
            pixels = operate(pixels, drawn.operations, _colour(tuple(fill), pixels.device))
    return pixels


def operate(pixels: Tensor, operations: Operations, fill: Tensor) -> Tensor:
    """Do the operations of each image.

    Args:
        pixels: Images (B, C, H, W) in uint8, which may be changed in place.
        operations: Which, and how.
        fill: Colour of what lies outside of the image, (C,) in uint8.

    Returns:
        Images (B, C, H, W) in uint8.
    """
    slide, slide_down = partial(geometry.slide, fill=fill), partial(geometry.slide_down, fill=fill)
    rotate = partial(geometry.rotate, fill=fill)
    at_once = max(_AT_ONCE // pixels[0].numel(), 1)
    for layer in range(operations.kind.shape[1]):
        kind, argument, bicubic = (part[:, layer] for part in operations)
        # An image has one kind a layer, so that it is changed at most once.
        looked_up = (kind >= LOOKED_UP.start) & (kind < LOOKED_UP.stop)
        pixels = on_chosen(colours.look_up, looked_up, pixels, kind, argument, at_once=8 * at_once)
        pixels = on_chosen(colours.colour, kind == Kind.COLOR, pixels, argument)
        pixels = on_chosen(colours.sharpen, kind == Kind.SHARPNESS, pixels, argument)
        for move, shear, translate in (
            (slide, Kind.SHEAR_X, Kind.TRANSLATE_X),
            (slide_down, Kind.SHEAR_Y, Kind.TRANSLATE_Y),
        ):
            shears = kind == shear
            moved = shears | (kind == translate)
            pixels = on_chosen(move, moved, pixels, shears, argument, bicubic, at_once=8 * at_once)
        pixels = on_chosen(rotate, kind == Kind.ROTATE, pixels, argument, bicubic, at_once=at_once)
    return pixels


def _windows(pixels: Tensor, drawn: Drawn) -> Tensor:
    crop, offsets, flip, _ = drawn
    if crop is not None:
        pixels = crops.cut_and_resize(pixels, crop.boxes, crop.bicubic, flip if offsets is None else None)
    if offsets is not None:
        return crops.shift(pixels, offsets, flip)
    return pixels if crop is not None or flip is None else crops.mirror(pixels, flip)


def _no_autocast(device: str) -> AbstractContextManager[Any]:
    """Keep the products of matrices in float32, where they are exact."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


@lru_cache
def _colour(fill: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor([min(255, round(255 * part)) for part in fill], dtype=torch.uint8, device=device)
