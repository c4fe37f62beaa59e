"""Batches on their own random streams: all that is drawn of an epoch's images is a function of (seed, epoch).

So every scheme sees the same images in the same order under one seed, and nothing needs to be stored to resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mpvg.data.augment import augment, keys
from mpvg.data.augmentation import Augmentation
from mpvg.data.batch import Batch
from mpvg.data.large.order import epoch_draws

_PIXELS_AT_ONCE = {
    "cpu": 2**19,
    "cuda": 2**23,
}  # the more, the fewer small kernels an image takes, until caches are full


def epoch_batches(
    pixels: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    augmentation: Augmentation,
    mean: Sequence[float],
    seed: int,
    epoch: int,
    first_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yield one epoch of full batches, augmented where the images lie.

    Args:
        pixels: Images (N, C, H, W) in uint8.
        labels: Labels (N,).
        batch_size: Images a batch; a remainder is left to another epoch's order.
        augmentation: What to draw of each image.
        mean: Of each channel, from 0 to 1: what a rotation leaves bare is filled with it.
        seed: The run's seed.
        epoch: Number of the epoch from 0.
        first_batch: Batch to begin with, from 0; those before are not drawn.
        rank: Of several processes, which one this is; each yields its part of every batch.
        world_size: Number of processes.

    Yields:
        This process's part of a batch.
    """
    height, width = pixels.shape[2:]
    device, repeats = pixels.device, augmentation.repeats
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    draws = np.repeat(random.permutation(len(pixels)), repeats)[: epoch_draws(len(pixels), repeats)]
    order = torch.from_numpy(draws).to(device)
    shift = int(augmentation.shift * min(height, width))
    offsets = torch.from_numpy(random.integers(-shift, shift + 1, (repeats, 2, len(pixels)))).to(device)
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    starts = range(first_batch * batch_size, len(order) - batch_size + 1, batch_size)
    images_at_once = _PIXELS_AT_ONCE.get(device.type, 2**19) // (height * width)
    at_once = max(images_at_once * world_size // batch_size, 1)  # batches
    for first in range(0, len(starts), at_once):
        batches = [torch.arange(start + rank, start + batch_size, world_size) for start in starts[first:][:at_once]]
        positions = torch.cat(batches).to(device)
        chosen = order[positions]
        if shift:
            down, across = offsets[positions % repeats, :, chosen].unbind(1)
            rows = (y + down[:, None]).clamp(0, height - 1)
            columns = (x + across[:, None]).clamp(0, width - 1)
            images = pixels[chosen[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        else:
            images = pixels[chosen]
        images = augment(images.contiguous(), augmentation, keys(seed, epoch, positions), fill=mean)
        yield from map(Batch, *(part.split(len(batches[0])) for part in (images, labels[chosen], positions)))
