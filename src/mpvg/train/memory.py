"""Images that lie on the device that computes, as Lightning wants batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mpvg.data.augmentation import Augmentation
from mpvg.data.batch import Batch
from mpvg.data.batches import epoch_batches
from mpvg.data.large.order import epoch_draws
from mpvg.data.preprocessing import eval_batch_size, to_tensors
from mpvg.data.splits import Split


def place(trainer: Any) -> tuple[int, int]:
    """Return the epoch that a trainer is in, and the batch that comes next.

    To be asked with the first batch: where a training goes on, Lightning makes the iterator before it knows.

    Args:
        trainer: Lightning's.
    """
    return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready


class TrainBatches:
    """The batches of the trainer's current epoch from where it stands, a function of (seed, epoch).

    Args:
        split: The training images.
        trainer: Whose epochs, device and processes these are.
        augmentation: What to draw of each image.
        mean: Of each channel, from 0 to 1: what a rotation leaves bare is filled with it.
        batch_size: Images a step, over all devices.
        seed: The run's seed.
    """

    def __init__(
        self,
        split: Split,
        trainer: Any,
        *,
        augmentation: Augmentation,
        mean: Sequence[float],
        batch_size: int,
        seed: int,
    ) -> None:
        self.trainer, self.augmentation, self.mean, self.seed = trainer, augmentation, mean, seed
        self.batch_size = batch_size
        self.pixels, self.labels = to_tensors(split, trainer.strategy.root_device)

    def __len__(self) -> int:
        return epoch_draws(len(self.labels), self.augmentation.repeats) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        epoch, first_batch = place(self.trainer)
        yield from epoch_batches(
            self.pixels,
            self.labels,
            batch_size=self.batch_size,
            augmentation=self.augmentation,
            mean=self.mean,
            seed=self.seed,
            epoch=epoch,
            first_batch=first_batch,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )


class EvalBatches:
    """A split in its own order.

    Args:
        split: The images.
        device: Where they are to lie.
    """

    def __init__(self, split: Split, device: torch.device | str) -> None:
        self.pixels, self.labels = to_tensors(split, device)
        self.batch_size = eval_batch_size((split.images.shape[1], split.images.shape[2]))

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.pixels.split(self.batch_size), self.labels.split(self.batch_size), strict=True)
