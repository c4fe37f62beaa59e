"""From pixels to what a model is fed: it travels in a checkpoint, so that prediction sees what training saw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from mpvg.data.splits import Split


@dataclass(frozen=True)
class Preprocessing:
    """Size and number of channels of the images, and the mean and deviation that normalise them.

    Args:
        size: Height and width in pixels; images of other sizes are resized, without keeping their proportions unless
            they are cropped.
        channels: 1 (grey) or 3 (RGB).
        mean: Of each channel, of pixels from 0 to 1.
        std: Of each channel, likewise.
        crop: Side of the image by that of the whole, of which the centre is taken; None resizes the whole image.
        interpolation: Of that resizing, "bicubic" or "bilinear".
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float | None = None
    interpolation: str = "bicubic"

    @classmethod
    def of(cls, train: Split) -> Preprocessing:
        """Return the preprocessing that gives the training images mean 0 and deviation 1."""
        height, width, channels = train.images.shape[1:]
        values = np.arange(256) / 255
        pixels = torch.from_numpy(train.images)  # NumPy would count in a copy of eight bytes a pixel
        counts = [pixels[..., channel].flatten().bincount(minlength=256).numpy() for channel in range(channels)]
        means = [float(np.average(values, weights=count)) for count in counts]
        deviations = [
            float(np.average((values - mean) ** 2, weights=count) ** 0.5)
            for mean, count in zip(means, counts, strict=True)
        ]
        return cls((height, width), channels, tuple(means), tuple(max(std, 1e-3) for std in deviations))

    @classmethod
    def of_imagenet(cls, size: tuple[int, int], *, crop: float | None, interpolation: str) -> Preprocessing:
        """Return the preprocessing of colour images by ImageNet's mean and deviation."""
        return cls(size, 3, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, crop, interpolation)

    def with_normalisation(self, found: tuple[tuple[float, ...], tuple[float, ...]] | None) -> Preprocessing:
        """Return the preprocessing with the mean and deviation that pretrained weights expect.

        Args:
            found: Mean and deviation; None, or those of another number of channels, change nothing.
        """
        if found is None or len(found[0]) != self.channels:
            return self
        return replace(self, mean=found[0], std=found[1])

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise pixels (N, C, H, W) in uint8 to float32."""
        mean, std = (part.to(pixels.device) for part in self._mean_and_std)
        return (pixels.float() / 255 - mean) / std

    @cached_property
    def _mean_and_std(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]


def to_tensors(split: Split, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return a split's pixels (N, C, H, W) in uint8 and its labels (N,) on a device."""
    pixels = torch.from_numpy(split.images).permute(0, 3, 1, 2).contiguous()
    return pixels.to(device), torch.from_numpy(split.labels).to(device)


def eval_batch_size(size: tuple[int, int]) -> int:
    """Return how many images to evaluate at a time: as many pixels whatever their size."""
    return min(max(2**22 // (size[0] * size[1]), 16), 512)
