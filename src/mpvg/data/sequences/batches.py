"""Batches of sequences of several lengths; what is drawn is a function of the seed and the epoch or the item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_SHUFFLING = 1  # tells the stream of `shuffled` from that of an epoch's order


def pad(items: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Make one tensor of sequences, filled up with zeros.

    Args:
        items: Ids (T,) or series (T, C).

    Returns:
        Ids (B, T) or series (B, T, C), and a mask (B, T) that is True at real places; None where all have one length.
    """
    lengths = torch.tensor([len(item) for item in items])
    x = pad_sequence(list(items), batch_first=True)
    if bool((lengths == lengths[0]).all()):
        return x, None
    return x, (torch.arange(x.shape[1]) < lengths[:, None]).to(x.device)


def epoch_batches(
    items: Sequence[Tensor], labels: Tensor, *, batch_size: int, seed: int, epoch: int, first_batch: int = 0
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Yield one epoch of full batches.

    Args:
        items: Ids (T,) or series (T, C).
        labels: Labels (N,).
        batch_size: Sequences a batch; a remainder is left to another epoch's order.
        seed: The run's seed.
        epoch: Number of the epoch from 0.
        first_batch: Batch to begin with, from 0.

    Yields:
        Sequences and mask as of `pad`, and labels (B,).
    """
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(items))
    for start in range(first_batch * batch_size, len(order) - batch_size + 1, batch_size):
        rows = order[start : start + batch_size]
        yield *pad([items[row] for row in rows]), labels[torch.from_numpy(rows)]


def eval_batches(
    items: Sequence[Tensor], labels: Tensor, *, places: int = 2**14
) -> Iterator[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
    """Yield every sequence once, those of similar length together.

    Args:
        items: Ids (T,) or series (T, C).
        labels: Labels (N,).
        places: Padded places that a batch holds at most; a longer sequence is a batch of its own.

    Yields:
        Sequences and mask as of `pad`, labels (B,), and which samples they are (B,).
    """
    rows: list[int] = []
    for row in sorted(range(len(items)), key=lambda row: len(items[row])):
        if rows and (len(rows) + 1) * len(items[row]) > places:
            yield _chosen(items, labels, rows)
            rows = []
        rows.append(row)
    if rows:
        yield _chosen(items, labels, rows)


def _chosen(items: Sequence[Tensor], labels: Tensor, rows: list[int]) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    chosen = torch.tensor(rows)
    return *pad([items[row] for row in rows]), labels[chosen], chosen


def shuffled(items: Sequence[Tensor], *, patch_size: int = 1, seed: int = 0) -> list[Tensor]:
    """Return sequences with their tokens in a random order, a function of the seed and the sequence's number.

    Args:
        items: Ids (T,) or series (T, C).
        patch_size: Steps of a token, which stay together; an incomplete last one stays last.
        seed: What to draw by.
    """
    return [_shuffled(item, patch_size, [seed, number, _SHUFFLING]) for number, item in enumerate(items)]


def _shuffled(item: Tensor, patch_size: int, entropy: list[int]) -> Tensor:
    patches = len(item) // patch_size
    order = torch.from_numpy(np.random.Generator(np.random.PCG64(entropy)).permutation(patches))
    whole = item[: patches * patch_size]
    mixed = whole.unflatten(0, (patches, patch_size))[order].flatten(0, 1) if patches else whole
    return torch.cat([mixed, item[patches * patch_size :]])
