"""Which images each batch of an iteration has: what loaders tell their workers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mpvg.data.large.order import StreamOrder, batch_positions, epoch_draws, epoch_order, eval_rows
from mpvg.data.large.split import LargeSplit, Rows
from mpvg.data.large.workers import Draws
from mpvg.errors import UserError


class TrainDraws:
    """One rank's part of the batches of an epoch, from any of them on.

    Args:
        split: Images to train on.
        repeats: How often in a row each is drawn.
        batch_size: Images of a step over all ranks.
        seed: The run's seed, from 0.
        rank: This process.
        world_size: How many processes there are.
        workers: Processes that read for this one.

    Raises:
        UserError: The batch cannot be dealt out to the ranks, or is larger than an epoch.
    """

    def __init__(
        self, split: LargeSplit, *, repeats: int, batch_size: int, seed: int, rank: int, world_size: int, workers: int
    ) -> None:
        if seed < 0:
            raise UserError(f"seed {seed}: use a number from 0.")
        if batch_size < 1 or batch_size % world_size:
            raise UserError(f"batch size {batch_size} over {world_size} processes: use a multiple of their number.")
        self.batches = epoch_draws(len(split), repeats) // batch_size
        if not self.batches:
            raise UserError(f"batch size {batch_size} is more than the {len(split)} images: use a smaller one.")
        self._split, self._repeats, self._batch_size, self._seed = split, repeats, batch_size, seed
        self._rank, self._world_size, self._streams = rank, world_size, max(workers, 1)
        self._epoch = self._first = 0

    def set_epoch(self, epoch: int, first_batch: int) -> None:
        """Say what the next iteration is of; see `TrainLoader.set_epoch`."""
        if not 0 <= first_batch <= self.batches:
            raise UserError(f"batch {first_batch} of epoch {epoch}: it has {self.batches} batches.")
        self._epoch, self._first = epoch, first_batch

    def __len__(self) -> int:
        return self.batches - self._first

    def __iter__(self) -> Iterator[Draws]:
        return self._streamed(self._epoch) if self._split.streamed else self._shuffled(self._epoch)

    def _shuffled(self, epoch: int) -> Iterator[Draws]:
        order = epoch_order(
            len(self._split), seed=self._seed, epoch=epoch, repeats=self._repeats, groups=self._split.groups
        )
        for batch in range(self._first, self.batches):
            yield Draws(epoch, self._positions(batch), order[self._positions(batch)])

    def _streamed(self, epoch: int) -> Iterator[Draws]:
        share = self._batch_size // self._world_size
        readers = self._streams * self._world_size
        order = StreamOrder(self._split, seed=self._seed, epoch=epoch, repeats=self._repeats, readers=readers)
        for batch in range(self._first, self.batches):
            # DataLoader gives batches to its workers in turn: so each keeps to one stream, whose shards it has read
            turn, stream = divmod(batch, self._streams)
            images = order.images(self._rank * self._streams + stream, turn * share, share)
            yield Draws(epoch, self._positions(batch), images)

    def _positions(self, batch: int) -> Rows:
        return batch_positions(batch, batch_size=self._batch_size, rank=self._rank, world_size=self._world_size)


class EvalDraws:
    """All images in the order in which they lie, each rank a part that follows another's.

    Args:
        count: How many images there are.
        batch_size: Images of a batch of one rank.
        rank: This process.
        world_size: How many processes there are.

    Raises:
        UserError: The batch is empty.
    """

    def __init__(self, count: int, *, batch_size: int, rank: int, world_size: int) -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: use 1 or more.")
        self._rows = eval_rows(count, batch_size=batch_size, rank=rank, world_size=world_size)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Draws]:
        for batch in self._rows:
            rows = np.asarray(batch)
            yield Draws(0, rows, rows)
