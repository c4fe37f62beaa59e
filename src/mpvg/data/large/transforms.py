"""From a Pillow image to uint8 pixels: timm's transforms, with what our settings need of torchvision's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import RandAugment, posterize
from torch import Tensor
from torchvision import transforms

from mpvg.data.augmentation import INTERPOLATIONS, Augmentation
from mpvg.data.images import Size
from mpvg.errors import UserError

Transform = Callable[[Image.Image], Tensor]
_BOTH = tuple(transforms.InterpolationMode(name) for name in ("bilinear", "bicubic"))
_AUGMENTING = 1  # the last word of a sample's stream; 0 would be as if it were not there


def train_transform(augmentation: Augmentation, size: Size, *, mean: Sequence[float]) -> Transform:
    """Return what is drawn of one training image: crop, flip and RandAugment; the rest is done to whole batches.

    It draws from the global generators of Python, NumPy and PyTorch, as timm's transforms do: see `drawing`.

    Args:
        augmentation: The settings; its shift, erasing, repeats and mixing are not done here.
        size: Height and width in pixels of the result.
        mean: Of each channel, of pixels from 0 to 1: what rotations and translations fill up with.

    Returns:
        A function of an RGB image that returns uint8 pixels (3, H, W).

    Raises:
        UserError: A random crop and a padding are both asked for.
    """
    if augmentation.crop_scale is not None and augmentation.padding:
        raise UserError(f"padding {augmentation.padding} with crop_scale {augmentation.crop_scale}: use one of both.")
    built = create_transform(
        (3, *size),
        is_training=True,
        use_prefetcher=True,  # ends in uint8
        scale=augmentation.crop_scale or (1.0, 1.0),
        ratio=augmentation.crop_ratio,
        hflip=augmentation.flip,
        color_jitter=None,
        auto_augment=augmentation.rand_augment,
        interpolation=augmentation.interpolation,
        mean=tuple(mean),
    )
    pieces = list(built.transforms)
    if augmentation.crop_scale is None:  # the whole image, in place of timm's crop
        pieces[:1] = [_resize(size, augmentation.interpolation)]
        if augmentation.padding:
            pieces.insert(1, transforms.RandomCrop(size, padding=augmentation.padding))
    for piece in pieces:
        if isinstance(piece, RandAugment):
            _allow_no_bits(piece)
    return transforms.Compose([*pieces, torch.as_tensor])  # some versions of timm end in an array


def eval_transform(size: Size, *, crop: float | None, interpolation: str) -> Transform:
    """Return timm's way to test: the shorter side is resized to the size / crop, and the centre taken.

    Args:
        size: Height and width in pixels of the result.
        crop: Part of the resized side that the centre has, above 0 and up to 1: 0.875 gives 256 for 224. None squeezes
            the whole image into the size.
        interpolation: "bilinear" or "bicubic".

    Returns:
        A function of an RGB image that returns uint8 pixels (3, H, W).

    Raises:
        UserError: The crop or the interpolation is none of these.
    """
    if crop is not None and not 0 < crop <= 1:
        raise UserError(f"crop {crop}: name a part of the resized side above 0 and up to 1, such as 0.875.")
    if interpolation not in INTERPOLATIONS[:2]:
        raise UserError(f"interpolation {interpolation!r}: testing needs bilinear or bicubic.")
    built = create_transform(
        (3, *size),
        use_prefetcher=True,
        crop_pct=crop or 1.0,
        crop_mode="squash" if crop is None else "center",
        interpolation=interpolation,
    )
    return transforms.Compose([*built.transforms, torch.as_tensor])


@contextmanager
def drawing() -> Iterator[Callable[[int, int, int], None]]:
    """Yield a function that sets the global generators for (seed, epoch, position); what they were is restored."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield _set_generators
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])


def _set_generators(seed: int, epoch: int, position: int) -> None:
    words = np.random.SeedSequence([seed, epoch, position, _AUGMENTING]).generate_state(5, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(words[1:4].view(np.uint32))
    torch.default_generator.manual_seed(int(words[4]))  # torch.manual_seed would reach for the accelerators too


class _RandomResize:
    def __init__(self, size: Size) -> None:
        self.choices = [transforms.Resize(size, mode) for mode in _BOTH]

    def __call__(self, image: Image.Image) -> Any:
        return random.choice(self.choices)(image)


def _resize(size: Size, interpolation: str) -> Any:
    if interpolation == "random":
        return _RandomResize(size)
    return transforms.Resize(size, transforms.InterpolationMode(interpolation))


def _allow_no_bits(augment: Any) -> None:
    for op in augment.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **unused: Any) -> Image.Image:
    """Keep the highest bits of each colour. Current Pillow refuses to keep none, which older ones made black."""
    return Image.new(image.mode, image.size) if bits <= 0 else posterize(image, bits, **unused)
