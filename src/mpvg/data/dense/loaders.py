"""Batches of dense tasks, by the same rules as those of labelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpvg.data.dense.split import DenseSplit
from mpvg.data.large.asked import EvalDraws, TrainDraws
from mpvg.data.large.loaders import EpochLoader
from mpvg.data.large.workers import AnyBatch, AskedBatches, Draws, Loader, check_processes

Transform = Callable[[Any, Any, np.random.Generator], Any]  # an image, what is in it, and what to draw from
Collate = Callable[[Sequence[Any], Tensor], AnyBatch]
_AUGMENTING = 2  # the last word of a stream; labelled images have 1


class AskedSamples(AskedBatches):
    """Reads images with what is in them, and augments each by numbers that its place in the epoch gives."""

    def __init__(
        self, split: DenseSplit[Any], transform: Transform, collate: Collate[Any], *, seed: int, replace: bool
    ) -> None:
        super().__init__(split, seed=seed, replace=replace)
        self.sample, self.transform, self.collate = split.sample, transform, collate

    def batch(self, draws: Draws, skipped: list[tuple[str, str]]) -> Any:
        samples, positions = [], []
        for index, position in zip(draws.indices.tolist(), draws.positions.tolist(), strict=True):
            found = self.readable(index, self.sample, skipped)
            if found is not None:
                random = np.random.Generator(np.random.PCG64([self.seed, draws.epoch, position, _AUGMENTING]))
                samples.append(self.transform(*found[1], random))
                positions.append(position)
        return self.collate(samples, torch.tensor(positions)) if samples else None


class DenseTrainLoader(EpochLoader[AnyBatch]):
    """Batches of an epoch, from any batch on.

    Order and augmentation are functions of (seed, epoch, place) alone: places of batch b begin at b * batch_size, and
    rank r has every world_size-th from r on. The last incomplete batch is left out.

    Args:
        split: Images to train on.
        transform: What is drawn of each.
        collate: What makes a batch of some, and of their places.
        batch_size: Images of a step over all ranks.
        seed: The run's seed, from 0.
        rank: This process.
        world_size: How many processes there are.
        workers: Processes that read for this one; 0 reads in it.
        pin_memory: Put batches where a GPU can fetch them from.

    Raises:
        UserError: The batch cannot be dealt out to the ranks, or is larger than an epoch.
    """

    def __init__(
        self,
        split: DenseSplit[Any],
        transform: Transform,
        collate: Collate[AnyBatch],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        check_processes(workers, rank, world_size)
        draws = TrainDraws(
            split,
            repeats=1,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            workers=workers,
        )
        images = AskedSamples(split, transform, collate, seed=seed, replace=True)
        super().__init__(images, draws, workers=workers, pin_memory=pin_memory)


class DenseEvalLoader(Loader[AnyBatch]):
    """Every image once over all ranks, one a batch, in the order in which they lie.

    Args:
        split: Images to evaluate.
        transform: What is made of each.
        collate: What makes a batch of one, and of its number.
        rank: This process.
        world_size: How many processes there are.
        workers: Processes that read for this one; 0 reads in it.
        pin_memory: Put batches where a GPU can fetch them from.
    """

    def __init__(
        self,
        split: DenseSplit[Any],
        transform: Transform,
        collate: Collate[AnyBatch],
        *,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        check_processes(workers, rank, world_size)
        draws = EvalDraws(len(split), batch_size=1, rank=rank, world_size=world_size)
        images = AskedSamples(split, transform, collate, seed=0, replace=False)
        super().__init__(images, draws, workers=workers, pin_memory=pin_memory)
