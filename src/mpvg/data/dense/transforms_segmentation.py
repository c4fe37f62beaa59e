"""From a picture and its class map to what a segmenter is trained or evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mpvg.data.dense.labels import IGNORED
from mpvg.data.dense.sizes import fitted, rounded_up
from mpvg.data.dense.split import ClassMap
from mpvg.data.dense.transforms_detection import resized_pixels

LONGER = 4  # what the long side may be of the short one
MULTIPLE = 32  # of the sides of evaluated images
_FLIPPED = 0.5  # part of the images
_TRIES, _LARGEST_PART = 10, 0.75  # crops to draw until no class has more of one
_DISTORTED = 0.5  # part of the images, for each kind
_BRIGHTNESS, _FACTORS, _HUE = 32.0, (0.5, 1.5), 0.1  # grey values, of contrast and saturation, part of the circle


class SegmentationBatch(NamedTuple):
    """Images with their class maps.

    Args:
        pixels: (B, 3, h, w) in uint8; in evaluation of one image.
        masks: Labels (B, h, w) in int64, 255 where there is none; in evaluation of the image's size as it is stored.
        positions: Which draws of the epoch these are (B,); of images that are evaluated, their numbers.
    """

    pixels: Tensor
    masks: Tensor
    positions: Tensor


@dataclass(frozen=True)
class SegmentationAugmentation:
    """What is drawn of a training image: a size, a crop, a flip and its colours.

    Args:
        scale: Short side in pixels, of which the size is a part; the long side is at most 4 times as long.
        ratio_range: From which part of it to which.
        crop_size: Side of the crop in pixels; smaller images are filled up.
    """

    scale: int
    ratio_range: tuple[float, float]
    crop_size: int

    def __call__(self, image: Image.Image, labels: ClassMap, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return pixels (3, crop_size, crop_size) and labels (crop_size, crop_size)."""
        ratio = random.uniform(*self.ratio_range)
        short, long = int(self.scale * ratio), int(LONGER * self.scale * ratio)
        size = fitted((image.height, image.width), short=short, long=long)
        pixels = resized_pixels(F.pil_to_tensor(image), size)
        mask = F.resize(torch.from_numpy(labels)[None], list(size), InterpolationMode.NEAREST_EXACT)[0]
        rows, columns = self._crop(mask, random)
        pixels, mask = pixels[:, rows, columns], mask[rows, columns]
        if random.random() < _FLIPPED:
            pixels, mask = pixels.flip(-1), mask.flip(-1)
        return self._filled(distorted(pixels, random), mask)

    def _crop(self, mask: Tensor, random: np.random.Generator) -> tuple[slice, slice]:
        for _ in range(_TRIES):
            corner = [int(random.integers(max(side - self.crop_size, 0), endpoint=True)) for side in mask.shape]
            rows, columns = (slice(start, start + self.crop_size) for start in corner)
            counts = torch.bincount(mask[rows, columns].flatten(), minlength=IGNORED + 1)[:IGNORED]
            if (counts > 0).sum() > 1 and counts.max() < _LARGEST_PART * counts.sum():
                break
        return rows, columns

    def _filled(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        height, width = mask.shape
        mean = torch.tensor(IMAGENET_DEFAULT_MEAN).mul(255).round().to(torch.uint8)  # nothing, once normalised
        whole = mean[:, None, None].repeat(1, self.crop_size, self.crop_size)
        whole[:, :height, :width] = pixels
        labels = torch.full((self.crop_size, self.crop_size), IGNORED)
        labels[:height, :width] = mask
        return whole, labels


@dataclass(frozen=True)
class SegmentationEvaluation:
    """What an image is evaluated at.

    Args:
        scale: Short side in pixels, before both are rounded up to multiples of 32; the long side is at most 4 times as
            long.
    """

    scale: int

    def __call__(self, image: Image.Image, labels: ClassMap, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return pixels (3, h, w) and labels (H, W), of the image as it is stored."""
        size = fitted((image.height, image.width), short=self.scale, long=LONGER * self.scale)
        pixels = resized_pixels(F.pil_to_tensor(image), rounded_up(size, MULTIPLE))
        return pixels, torch.from_numpy(labels).long()


def segmentation_batch(samples: Sequence[tuple[Tensor, Tensor]], positions: Tensor) -> SegmentationBatch:
    """Return a batch of what the transform of training gives, or of one image of that of evaluation."""
    pixels, masks = zip(*samples, strict=True)
    return SegmentationBatch(torch.stack(pixels), torch.stack(masks), positions)


def distorted(pixels: Tensor, random: np.random.Generator) -> Tensor:
    """Return pixels (3, H, W) in uint8 with other brightness, contrast, saturation and hue, each of half the images."""
    found = pixels.float()
    if random.random() < _DISTORTED:
        found = (found + random.uniform(-_BRIGHTNESS, _BRIGHTNESS)).clamp(0, 255)
    contrast_first = random.random() < 0.5
    contrast = random.uniform(*_FACTORS) if random.random() < _DISTORTED else 1.0
    if contrast_first:
        found = (found * contrast).clamp(0, 255)
    if random.random() < _DISTORTED:
        found = saturated(found, random.uniform(*_FACTORS))
    if random.random() < _DISTORTED:
        found = F.adjust_hue(found / 255, random.uniform(-_HUE, _HUE)) * 255
    if not contrast_first:
        found = (found * contrast).clamp(0, 255)
    return found.round().clamp(0, 255).to(torch.uint8)


def saturated(pixels: Tensor, factor: float) -> Tensor:
    """Multiply the saturation, up to one, at the same hue and value (HSV).

    A colour's distances from its largest channel are in proportion to its saturation, and to each other as its hue.

    Args:
        pixels: (3, H, W) from 0.
        factor: What to multiply by.
    """
    value = pixels.amax(dim=0)
    distances = value - pixels
    largest = distances.amax(dim=0).clamp(min=1e-6)
    return value - distances * (value / largest).clamp(max=factor)
