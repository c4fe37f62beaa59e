"""Batches on their own random streams: an order and its shifts are a function of (seed, epoch).

So every scheme sees the same images in the same order under one seed, and nothing needs to be stored to resume.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def epoch_batches(
    pixels: Tensor, labels: Tensor, *, batch_size: int, shift: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of full batches, each image shifted by up to `shift` pixels over its repeated border.

    Args:
        pixels: Images (N, C, H, W).
        labels: Labels (N,).
        batch_size: Images a batch; a remainder is left to another epoch's order.
        shift: Largest shift in pixels; 0 for none.
        seed: The run's seed.
        epoch: Number of the epoch from 0.

    Yields:
        Images (B, C, H, W) and labels (B,).
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = torch.from_numpy(random.permutation(len(pixels))).to(pixels.device)
    offsets = torch.from_numpy(random.integers(-shift, shift + 1, (2, len(pixels)))).to(pixels.device)
    height, width = pixels.shape[2:]
    y, x = torch.arange(height, device=pixels.device), torch.arange(width, device=pixels.device)
    for start in range(0, len(pixels) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        rows = (y + offsets[0, chosen, None]).clamp(0, height - 1)
        columns = (x + offsets[1, chosen, None]).clamp(0, width - 1)
        batch = pixels[chosen[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        yield batch.permute(0, 3, 1, 2).contiguous(), labels[chosen]
