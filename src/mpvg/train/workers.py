"""Images that worker processes read, as Lightning wants batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic

from mpvg.data.large.loaders import EpochLoader
from mpvg.data.large.workers import AnyBatch
from mpvg.train.memory import place, whole_steps


class WorkerBatches(Generic[AnyBatch]):
    """The batches of the trainer's current epoch, from where it stands.

    Args:
        loader: What reads them.
        trainer: Whose epochs these are.
        batch_size: Images a step, over all devices.
    """

    def __init__(self, loader: EpochLoader[AnyBatch], trainer: Any, *, batch_size: int) -> None:
        self.loader, self.trainer, self.batch_size = loader, trainer, batch_size

    def __len__(self) -> int:
        return whole_steps(self.loader.epoch_batches, self.trainer)

    def __iter__(self) -> Iterator[AnyBatch]:
        self.loader.set_epoch(*place(self.trainer))
        yield from self.loader
