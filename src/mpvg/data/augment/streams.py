"""Random numbers that are a function of (seed, epoch, position of the draw): no state, the same in every batch.

Splitmix64 in int64 arithmetic that wraps around: each number is a hash of its key, its purpose and its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

CROP, FLIP, OPERATIONS, ERASING, NOISE = range(5)  # purposes

_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_WORD = 2**64 - 1


def keys(seed: int, epoch: int, positions: Tensor) -> Tensor:
    """Return the key of each draw of an epoch.

    Args:
        seed: The run's seed.
        epoch: Number of the epoch from 0.
        positions: The draws' places in the epoch, (B,) in int64.

    Returns:
        Keys (B,) in int64 on the device of the positions.
    """
    assert positions.dtype == torch.int64, positions.dtype
    start = _mixed_word(_mixed_word(seed + _GOLDEN) + epoch)
    return _mixed(positions * _signed(_GOLDEN) + _signed(start))


def uniform(keys: Tensor, count: int, *, purpose: int) -> Tensor:
    """Return random numbers from 0 to below 1, of 24 bits.

    Args:
        keys: What each row is drawn from, (B,) in int64.
        count: Numbers a key.
        purpose: Which of a key's streams; different purposes are independent.

    Returns:
        Numbers (B, count) in float32; the first ones are the same whatever the count.
    """
    return uniforms(keys, {purpose: count})[0]


def uniforms(keys: Tensor, counts: Mapping[int, int]) -> tuple[Tensor, ...]:
    """Return what `uniform` gives for several purposes, drawn at once.

    Args:
        keys: What each row is drawn from, (B,) in int64.
        counts: Numbers a key of each purpose.

    Returns:
        Numbers (B, count) in float32 for each purpose.
    """
    numbers = _logical_shift(_hashes(keys, tuple(counts.items())), 40).float() * 2**-24
    return numbers.split(list(counts.values()), dim=1)


def normal(keys: Tensor, count: int, *, purpose: int) -> Tensor:
    """Return random numbers of mean 0 and deviation 1.

    Args:
        keys: What each row is drawn from, (B,) in int64.
        count: Numbers a key; pairs of them share a hash (Box and Muller's way).
        purpose: Which of a key's streams.

    Returns:
        Numbers (B, count) in float32; the first ones are the same whatever the count.
    """
    hashes = _hashes(keys, ((purpose, (count + 1) // 2),))
    high, low = (words.float() * 2**-32 for words in (_logical_shift(hashes, 32), hashes & 0xFFFFFFFF))
    radius, angle = (high + 2**-33).log().mul(-2).sqrt(), low * (2 * math.pi)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(1)[:, :count]


def normal_from(one: Tensor, other: Tensor) -> Tensor:
    """Return a number of mean 0 and deviation 1 for each two uniform ones from 0 to below 1."""
    return (1 - one).log().mul(-2).sqrt() * (other * (2 * math.pi)).cos()


def _hashes(keys: Tensor, counts: tuple[tuple[int, int], ...]) -> Tensor:
    return _mixed(keys[:, None] + _steps(counts, keys.device))


@lru_cache
def _steps(counts: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Return what is added to a key for each number: each purpose starts elsewhere."""
    parts = []
    for purpose, count in counts:
        steps = torch.arange(1, count + 1, device=device) * _signed(_GOLDEN)
        parts.append(steps + _signed(_mixed_word((purpose + 1) * _GOLDEN)))
    return torch.cat(parts)


def _mixed(words: Tensor) -> Tensor:
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        words = (words ^ _logical_shift(words, shift)) * _signed(factor)
    return words ^ _logical_shift(words, _SHIFTS[-1])


def _logical_shift(words: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros, where int64's own shift would repeat the sign."""
    return (words >> bits) & (_WORD >> bits)


def _mixed_word(word: int) -> int:
    word &= _WORD
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        word = (word ^ (word >> shift)) * factor & _WORD
    return word ^ (word >> _SHIFTS[-1])


def _signed(word: int) -> int:
    word &= _WORD
    return word - 2**64 if word >> 63 else word
