"""The order of an epoch: a function of (seed, epoch), so that any batch of it can be drawn without those before."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpvg.data.large.split import LargeSplit, Rows
from mpvg.errors import UserError

WINDOW = 8192  # images that are shuffled among each other where order follows shards
STREAM_WINDOW = 1024  # likewise where one process holds them all in memory
_MULTIPLE = 256  # repeated augmentation ends an epoch at a multiple of it, as in the code of DeiT


def epoch_draws(count: int, repeats: int) -> int:
    """Return how many images an epoch draws: all, or with repeats a multiple of 256, where there are as many.

    Args:
        count: Images of the set.
        repeats: How often in a row each is drawn; an epoch is not longer for it.
    """
    return count if repeats == 1 or count < _MULTIPLE else count // _MULTIPLE * _MULTIPLE


def epoch_order(
    count: int, *, seed: int, epoch: int, repeats: int = 1, groups: Rows | None = None
) -> npt.NDArray[np.int64]:
    """Return the images of an epoch in the order of its draws.

    Args:
        count: Images of the set.
        seed: The run's seed.
        epoch: Number of the epoch from 0.
        repeats: How often in a row each image is drawn.
        groups: Images of each shard: then the shards are shuffled, and the images within some shards that follow
            each other; None shuffles all images.

    Returns:
        Indices (draws,); those of one process and of many are the same.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    draws = epoch_draws(count, repeats)
    if groups is None:
        order = random.permutation(count)
    else:
        starts = np.cumsum(groups) - groups
        shards = random.permutation(len(groups))
        order = _windowed(starts[shards], groups[shards], WINDOW, random)
    return np.repeat(order[: -(-draws // repeats)], repeats)[:draws]


def batch_positions(batch: int, *, batch_size: int, rank: int, world_size: int) -> npt.NDArray[np.int64]:
    """Return the places in the epoch of one rank's part of a batch: every world_size-th from the rank on.

    Args:
        batch: Number of the batch from 0.
        batch_size: Images of the batch over all ranks.
        rank: The process.
        world_size: How many processes there are.
    """
    return np.arange(batch * batch_size + rank, (batch + 1) * batch_size, world_size)


def eval_rows(count: int, *, batch_size: int, rank: int, world_size: int) -> list[range]:
    """Return the rows of each batch that a rank evaluates: all ranks' together are each row once.

    Ranks have as many batches as each other, for a model that is sharded over them is run by all together.

    Args:
        count: Rows, at least one a rank.
        batch_size: Rows of a batch at most.
        rank: The process.
        world_size: How many processes there are.
    """
    first, end = count * rank // world_size, count * (rank + 1) // world_size
    largest_share = -(-count // world_size)
    batches = -(-largest_share // batch_size)
    starts = [first + max(min(batch * batch_size, end - first - 1), 0) for batch in range(batches)]
    return [range(*pair) for pair in zip(starts, [*starts[1:], end], strict=True) if pair[0] < pair[1]]


class StreamOrder:
    """The order of images that are read as streams: each reader has shards of its own and reads them once.

    Readers are all workers of all ranks. One that has fewer images than its batches need begins again; one that has
    more leaves some out. So all ranks have as many batches, and order depends on how many readers there are.

    Args:
        split: What is read.
        seed: The run's seed.
        epoch: Number of the epoch from 0.
        repeats: How often in a row each image is drawn.
        readers: How many there are.

    Raises:
        UserError: There are more readers than images.
    """

    def __init__(self, split: LargeSplit, *, seed: int, epoch: int, repeats: int, readers: int) -> None:
        assert split.groups is not None
        if readers > len(split):
            raise UserError(f"{readers} readers (ranks times workers) for {len(split)} images: use fewer workers.")
        self._seed, self._epoch, self._repeats, self._readers = seed, epoch, repeats, readers
        starts, sizes = np.cumsum(split.groups) - split.groups, split.groups
        while len(sizes) < readers:  # too few shards for a reader each: halves of them
            starts = np.stack([starts, starts + sizes // 2], axis=1).reshape(-1)
            sizes = np.stack([sizes // 2, sizes - sizes // 2], axis=1).reshape(-1)
            starts, sizes = starts[sizes > 0], sizes[sizes > 0]
        random = np.random.Generator(np.random.PCG64([seed, epoch]))
        shuffled = random.permutation(len(sizes))
        self._starts, self._sizes = starts[shuffled], sizes[shuffled]
        self._orders: dict[int, Rows] = {}

    def images(self, reader: int, first: int, count: int) -> npt.NDArray[np.int64]:
        """Return `count` images of a reader, from its draw `first` on."""
        if reader not in self._orders:
            starts, sizes = self._starts[reader :: self._readers], self._sizes[reader :: self._readers]
            # Not [seed, epoch, reader]: NumPy fills up with zeros, so that reader 0 would have the shards' stream.
            random = np.random.Generator(np.random.PCG64([self._seed, self._epoch, reader + 1]))
            self._orders[reader] = _windowed(starts, sizes, STREAM_WINDOW, random)
        order = self._orders[reader]
        return order[np.arange(first, first + count) // self._repeats % len(order)]


def _windowed(starts: Rows, sizes: Rows, window: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return all images of shards, shuffled among shards that follow each other until there are `window` of them."""
    shards = [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    order = np.concatenate(shards)
    begin = held = 0
    for place, shard in enumerate(shards):
        held += len(shard)
        if held >= window or place == len(shards) - 1:
            order[begin : begin + held] = random.permutation(order[begin : begin + held])
            begin, held = begin + held, 0
    return order
