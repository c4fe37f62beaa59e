"""Models that differ in their seed only, taken together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpvg.analysis.results import BlockFindings, Estimate, Findings, by_series
from mpvg.stats import student_interval

__all__ = ["LCA", "Point", "Series", "grouped", "last_receiving", "over_seeds"]

LCA = "LCA"  # the name of CeiT's attention over layers

Measure = Callable[[BlockFindings], Estimate]


@dataclass(frozen=True)
class Point:
    """A measure at one block.

    Args:
        block: The block's number.
        name: Its name.
        estimate: The measure; over seeds its mean and 95 % Student-t interval, else as found.
        seeds: Each seed's value.
        paper: The correlation that the paper prints for the block.
    """

    block: int
    name: str
    estimate: Estimate
    seeds: tuple[float | None, ...]
    paper: float | None


@dataclass(frozen=True)
class Series:
    """One model, with one or several seeds."""

    name: str
    members: tuple[Findings, ...]

    def points(self, measure: Measure) -> list[Point]:
        """Return a measure of every block that receives a position, CeiT's LCA last."""
        blocks = [[block for block in one.blocks if block.position is not None] for one in self.members]
        points = []
        for same in zip(*blocks, strict=True):
            estimates = [measure(block) for block in same]
            seeds = tuple(one.value for one in estimates)
            estimate = estimates[0] if len(same) == 1 else over_seeds(seeds)
            points.append(Point(same[0].block, same[0].name, estimate, seeds, same[0].paper))
        return points


def grouped(findings: Sequence[Findings]) -> list[Series]:
    """Collect the seeds of each model, in order of appearance."""
    return [Series(name, tuple(members)) for name, members in by_series(findings).items()]


def over_seeds(values: Sequence[float | None]) -> Estimate:
    """Return the mean over seeds and its interval; undefined where some seed's value is."""
    known = [value for value in values if value is not None]
    return Estimate(*student_interval(known)) if known and len(known) == len(values) else Estimate(None)


def last_receiving(points: Sequence[Point]) -> Point | None:
    """Return the last block that receives a position, CeiT's LCA aside."""
    return next((point for point in reversed(points) if point.name != LCA), None)
