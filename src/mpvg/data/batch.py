"""What a training step is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Augmented images.

    Args:
        pixels: (B, C, H, W) in uint8.
        labels: Classes (B,).
        positions: Which draws of the epoch these are (B,); of images that are tested, their numbers.
    """

    pixels: Tensor
    labels: Tensor
    positions: Tensor
