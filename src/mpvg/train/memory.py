"""Images that lie on the device that computes, as Lightning wants batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from mpvg.data.augmentation import Augmentation
from mpvg.data.batch import Batch
from mpvg.data.batches import epoch_batches
from mpvg.data.large.order import epoch_draws, eval_rows
from mpvg.data.preprocessing import eval_batch_size, to_tensors
from mpvg.data.splits import Split


def place(trainer: Any) -> tuple[int, int]:
    """Return the epoch that a trainer is in, and the batch that comes next.

    To be asked with the first batch: where a training goes on, Lightning makes the iterator before it knows.

    Args:
        trainer: Lightning's.
    """
    return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready


def whole_steps(batches: int, trainer: Any) -> int:
    """Return how many batches of an epoch are trained on: none that would make a smaller step of the optimiser.

    Args:
        batches: Of the epoch.
        trainer: Lightning's, which accumulates gradients.
    """
    accumulated: int = trainer.accumulate_grad_batches
    return batches // accumulated * accumulated


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
        batches = epoch_draws(len(self.labels), self.augmentation.repeats) // self.batch_size
        return whole_steps(batches, self.trainer)

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
    """This process's part of a split, in its own order.

    Args:
        split: The images.
        trainer: Whose device and processes these are.
    """

    def __init__(self, split: Split, trainer: Any) -> None:
        self.pixels, self.labels = to_tensors(split, trainer.strategy.root_device)
        self.batch_size = eval_batch_size((split.images.shape[1], split.images.shape[2]))
        self.rows = eval_rows(
            len(self.labels), batch_size=self.batch_size, rank=trainer.global_rank, world_size=trainer.world_size
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self.pixels[rows.start : rows.stop], self.labels[rows.start : rows.stop]) for rows in self.rows)
