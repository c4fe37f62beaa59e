"""Pieces of work timed in turn (A B A B ...), and ratios of their times that say when they mean nothing."""

from __future__ import annotations

import ctypes
import gc
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import comb, exp, log
from statistics import fmean, median
from typing import NamedTuple

import torch

from mpvg.stats import CONFIDENCE

Work = Callable[[], object]
Clock = Callable[[Work, int], float]  # work, how many times -> seconds for one time

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h

FEWEST_ROUNDS = 6  # with fewer, no pair of times encloses the median with 95 % confidence
OFF = 0.01  # how far work may seem to be from itself on a machine that is quiet
WIDE = 0.02  # how far the interval of that may reach
SHORTEST = 0.05  # seconds of a turn: shorter work is repeated within it, all of it as often


class Ratio(NamedTuple):
    """The median over rounds of a ratio, and its 95 % interval."""

    median: float
    low: float
    high: float


def keep_memory() -> None:
    """Have glibc keep what is freed, for the rest of the process, as other allocators do.

    By default it hands large blocks back to the system and faults them in again, at moments that hang on how a model's
    code holds its tensors: two models that compute the same differed by 6 % in this.
    """
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def processor_clock(work: Work, times: int) -> float:
    """Return the seconds that a piece of work takes once, by the wall clock."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def gpu_clock(work: Work, times: int) -> float:
    """Return the seconds that a piece of work takes once, by the GPU's own events."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / times


def take_turns(
    prepare: Sequence[Callable[[], Work]],
    clock: Clock,
    *,
    rounds: int,
    seconds: float,
    builds: int = 1,
    after_round: Callable[[int], None] = lambda done: None,
    before_build: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """Time pieces of work in turn, in a new order each round, so that none always follows the same.

    Args:
        prepare: Makes each piece of work.
        clock: How to time one.
        rounds: At most so many rounds.
        seconds: Begin no round after so many seconds of them, once there are rounds enough for an interval.
        builds: Make all pieces of work anew so many times on the way: where a model happens to lie in memory makes up
            to a percent of difference, which no number of rounds averages out.
        after_round: Called between rounds with their number so far.
        before_build: Called before the pieces of work are made.

    Returns:
        For each piece of work its seconds in every round.
    """
    builds = min(builds, rounds)
    times: list[list[float]] = [[] for _ in prepare]
    for build in range(builds):
        before_build()
        places = random.sample(range(len(prepare)), len(prepare))
        made = {place: prepare[place]() for place in places}
        works = [made[place] for place in range(len(prepare))]
        del made
        _take_turns(
            works,
            clock,
            times,
            rounds=rounds // builds + (build < rounds % builds),
            seconds=seconds / builds,
            fewest=-(-FEWEST_ROUNDS // builds),
            after_round=after_round,
        )
        del works
        gc.collect()
    return times


def _take_turns(
    works: Sequence[Work],
    clock: Clock,
    times: list[list[float]],
    *,
    rounds: int,
    seconds: float,
    fewest: int,
    after_round: Callable[[int], None],
) -> None:
    """Add to `times` those of one build's rounds."""
    for work in works:  # warm-up: compilation, caches, allocators
        clock(work, 2)
    repeats = max(1, round(SHORTEST / max(clock(work, 1) for work in works)))
    order, start = list(range(len(works))), time.monotonic()
    for done in range(rounds):
        if done >= fewest and time.monotonic() - start > seconds:
            break
        random.shuffle(order)
        for index in order:
            times[index].append(clock(works[index], repeats))
        after_round(len(times[0]))


def ratio(times: Sequence[float], *references: Sequence[float]) -> Ratio:
    """Compare times with those of the same rounds in one or more runs of a reference.

    The interval encloses the median by order statistics: it assumes nothing of how times are distributed, and a burst
    of other work on the machine moves it little.

    Args:
        times: Seconds by round.
        references: Seconds by round; of several, the geometric mean counts.

    Returns:
        The median ratio and its interval.

    Raises:
        ValueError: Fewer rounds than an interval needs.
    """
    rounds = len(times)
    if rounds < FEWEST_ROUNDS:
        raise ValueError(f"rounds={rounds}: an interval needs at least {FEWEST_ROUNDS}.")
    found = sorted(own / exp(fmean(map(log, others))) for own, *others in zip(times, *references, strict=True))
    below, rank = 0.5**rounds, 0  # the chance that at most `rank` of the rounds are below the true median
    while below + comb(rounds, rank + 1) * 0.5**rounds <= (1 - CONFIDENCE) / 2:
        rank += 1
        below += comb(rounds, rank) * 0.5**rounds
    return Ratio(median(found), found[rank], found[-1 - rank])


def is_quiet(noise: Ratio) -> bool:
    """Say whether a reference beside itself came out as 1.00, nearly enough to tell differences of a percent or two."""
    return abs(noise.median - 1) <= OFF and noise.low >= 1 - WIDE and noise.high <= 1 + WIDE
