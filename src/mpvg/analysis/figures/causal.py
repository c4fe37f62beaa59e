"""The causal test: what happens to a model's answers when a block receives another position."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mpvg.analysis.figures.depth import place_apart, scale_panels, tick_blocks
from mpvg.analysis.figures.numbers import wrapped
from mpvg.analysis.figures.series import LCA, Series, grouped, over_seeds
from mpvg.analysis.results import Estimate, Findings, Intervention
from mpvg.report.svg import WIDE, Palette

__all__ = ["CausalChart", "causal_charts"]

_ALL = "all"


class _Kind(NamedTuple):
    """What a block receives instead, and how that is drawn: its colour among the series', and beside the block."""

    name: str
    marker: str
    colour: int
    shift: float


_KINDS = {
    "removed": _Kind("nothing (removed)", "o", 1, -0.25),
    "pos_0": _Kind("pos_0", "s", 2, 0.0),
    "d_k": _Kind("another block's d_k", "^", 3, 0.25),
}


@dataclass(frozen=True)
class _Effect:
    place: float | None  # None for all blocks at once
    kind: str
    estimate: Estimate


@dataclass(frozen=True)
class CausalChart:
    """Effects by block, a panel for each series.

    Args:
        series: The series, all with a causal test.
        accuracy: Whether to draw changes of accuracy; otherwise the part of answers that stay the same.
    """

    series: Sequence[Series]
    accuracy: bool

    def draw(self, palette: Palette) -> Figure:
        """Return the figure in given colours."""
        blocks = [block for one in self.series for block in one.members[0].blocks]
        depth = 1 + max(block.block for block in blocks if block.name != LCA)
        apart = [LCA] if any(block.name == LCA for block in blocks) else []
        figure, pairs = _pairs_of_panels(len(self.series))
        for one, (left, right) in zip(self.series, pairs, strict=True):
            left.set_title(wrapped(one.name, 56))
            tick_blocks(left, depth, apart=apart)
            right.set_xlim(-0.6, 0.6)
            right.set_xticks([0], [_ALL])
            right.grid(axis="y")
        effects = [list(self._effects(one, depth)) for one in self.series]
        for side in (0, 1):
            shown = [[effect for effect in one if (effect.place is None) == (side == 1)] for one in effects]
            panels = [pair[side] for pair in pairs]
            found = [value for one in shown for effect in one for value in effect.estimate]
            scale_panels(panels, found, limits=None if self.accuracy else (-4, 104))
            for axes, drawn in zip(panels, shown, strict=True):
                for effect in drawn:
                    _draw_effect(axes, effect, palette)
        figure.supylabel("change of accuracy (percentage points)" if self.accuracy else "same answers (%)")
        used = {effect.kind for one in effects for effect in one}
        figure.legend(handles=list(_legend(palette, used)), loc="outside lower center", ncols=3, frameon=False)
        return figure

    def _effects(self, series: Series, depth: int) -> Iterator[_Effect]:
        tests = [one.causal.interventions for one in series.members if one.causal is not None]
        for same in zip(*tests, strict=True):
            first = same[0]
            kind = "d_k" if first.change.startswith("d_") else first.change
            place = place_apart(depth, 0) if first.name == LCA else first.block
            estimates = [self._estimate(one) for one in same]
            estimate = estimates[0] if len(same) == 1 else over_seeds([one.value for one in estimates])
            yield _Effect(place, kind, _within_reach(estimate))

    def _estimate(self, one: Intervention) -> Estimate:
        if not self.accuracy:
            return Estimate(100 * one.same_answers)
        return Estimate(*(None if value is None else 100 * value for value in one.difference))


def causal_charts(findings: Sequence[Findings]) -> tuple[CausalChart | None, CausalChart | None]:
    """Lay out the causal test.

    Args:
        findings: The models.

    Returns:
        The chart of the models whose accuracy is known, and that of the others; None where there are none.
    """
    tested = grouped([one for one in findings if one.causal is not None])
    known = [one for one in tested if _has_accuracy(one)]
    unknown = [one for one in tested if not _has_accuracy(one)]
    return CausalChart(known, True) if known else None, CausalChart(unknown, False) if unknown else None


def _within_reach(estimate: Estimate) -> Estimate:
    """Cut an interval over few seeds where no accuracy can be."""
    value, low, high = estimate
    return Estimate(value, None if low is None else max(low, -100.0), None if high is None else min(high, 100.0))


def _has_accuracy(series: Series) -> bool:
    return all(
        change.accuracy is not None
        for one in series.members
        if one.causal is not None
        for change in one.causal.interventions
    )


def _pairs_of_panels(count: int) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Make a wide and a slim panel for each series, for single blocks and for all at once."""
    columns = min(2, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDE, 2.4 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[8, 1] * columns)
    flat = list(grid.flat)
    for axes in flat[2 * count :]:
        axes.set_axis_off()
    pairs = list(zip(flat[: 2 * count : 2], flat[1 : 2 * count : 2], strict=True))
    for left, _ in pairs[max(0, count - columns) :]:
        left.set_xlabel("block")
    return figure, pairs


def _legend(palette: Palette, used: Container[str]) -> Iterator[Line2D]:
    for kind, (name, marker, colour, _) in _KINDS.items():
        if kind in used:
            label = f"receives {name}"
            yield Line2D([], [], color=palette.series[colour], marker=marker, markersize=5, linewidth=0, label=label)


def _draw_effect(axes: Axes, effect: _Effect, palette: Palette) -> None:
    kind, (value, low, high) = _KINDS[effect.kind], effect.estimate
    if value is None:
        return
    x, colour = (effect.place or 0.0) + kind.shift, palette.series[kind.colour]
    if low is not None and high is not None:
        axes.plot([x, x], [low, high], color=colour, linewidth=1.2)
    axes.plot([x], [value], kind.marker, color=colour, markersize=4.5, markeredgewidth=0)
