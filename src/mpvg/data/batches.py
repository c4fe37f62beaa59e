"""Batches on their own random streams: an order is a function of (seed, epoch), a crop of (seed, epoch, image).

So every scheme sees the same images in the same order under one seed, and nothing needs to be stored to resume.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mpvg.data.sources import Split


class Pixels:
    """Turns uint8 images into normalised tensors, with the mean and deviation of the training images."""

    def __init__(self, train: Split) -> None:
        scaled = train.images.reshape(-1, train.images.shape[3]) / np.float32(255)
        self.mean = scaled.mean(axis=0, dtype=np.float64)
        self.std = scaled.std(axis=0, dtype=np.float64).clip(1e-3)

    def __call__(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) in float32 and labels (N,)."""
        images = torch.from_numpy(split.images).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.from_numpy(part).float()[:, None, None] for part in (self.mean, self.std))
        return ((images - mean) / std).contiguous(), torch.from_numpy(split.labels)


def epoch_batches(
    images: Tensor, labels: Tensor, *, batch_size: int, shift: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of full batches, each image shifted by up to `shift` pixels over its repeated border.

    Args:
        images: Normalised images (N, C, H, W).
        labels: Labels (N,).
        batch_size: Images a batch; a remainder is left to another epoch's order.
        shift: Largest shift in pixels; 0 for none.
        seed: The run's seed.
        epoch: Number of the epoch from 0.

    Yields:
        Images (B, C, H, W) and labels (B,).
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = torch.from_numpy(random.permutation(len(images)))
    offsets = torch.from_numpy(random.integers(-shift, shift + 1, (2, len(images))))
    height, width = images.shape[2:]
    for start in range(0, len(images) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        rows = (torch.arange(height) + offsets[0, chosen, None]).clamp(0, height - 1)
        columns = (torch.arange(width) + offsets[1, chosen, None]).clamp(0, width - 1)
        batch = images[chosen[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        yield batch.permute(0, 3, 1, 2).contiguous(), labels[chosen]
