"""Images that worker processes read, as Lightning wants batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpvg.data.batch import Batch
from mpvg.data.large import TrainLoader


class WorkerBatches:
    """The batches of the trainer's current epoch.

    Args:
        loader: What reads them.
        trainer: Whose epochs these are.
        batch_size: Images a step, over all devices.
    """

    def __init__(self, loader: TrainLoader, trainer: Any, *, batch_size: int) -> None:
        self.loader, self.trainer, self.batch_size = loader, trainer, batch_size

    def __len__(self) -> int:
        return self.loader.epoch_batches

    def __iter__(self) -> Iterator[Batch]:
        # told with the first batch: where a training goes on, Lightning makes the iterator before it counts the epoch
        self.loader.set_epoch(self.trainer.current_epoch)
        yield from self.loader
