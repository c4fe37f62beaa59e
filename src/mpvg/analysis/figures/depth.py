"""Measures by depth: the paper's figure 4, shares of variance and ranks, a panel for each model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mpvg.analysis.figures.numbers import tick, wrapped
from mpvg.analysis.figures.series import LCA, Point, Series
from mpvg.analysis.results import BlockFindings, Estimate
from mpvg.report.svg import WIDE, Palette

__all__ = ["DepthChart", "grid_of_panels", "place_apart", "scale_panels", "tick_blocks"]

_STEPS = (1, 2, 5, 10)
_DASHES = (0, (3, 2))

Measure = Callable[[BlockFindings], Estimate]
Dashes = Literal["-"] | tuple[int, tuple[int, int]]


@dataclass(frozen=True)
class DepthChart:
    """Small multiples of a measure by block, a panel for each series that receives positions.

    Args:
        series: The series; their order decides their colours.
        measure: What to draw.
        name: What the vertical axis says.
        centred: Whether the vertical axis reaches equally far to both sides of zero.
        second: A second measure, as lighter marks.
        second_name: Its name.
        paper: Whether to draw the paper's correlations.
    """

    series: Sequence[Series]
    measure: Measure
    name: str
    centred: bool = False
    second: Measure | None = None
    second_name: str = ""
    paper: bool = False

    def draw(self, palette: Palette) -> Figure:
        """Return the figure in given colours."""
        points = [one.points(self.measure) for one in self.series]
        shown = [at for at, found in enumerate(points) if found]
        figure, panels = grid_of_panels(len(shown), most=4)
        depth = max(_depth(points[at]) for at in shown)
        apart = [LCA] if any(point.name == LCA for at in shown for point in points[at]) else []
        for at, axes in zip(shown, panels, strict=True):
            for other in shown:
                if other != at:
                    _draw_line(
                        axes, _in_line(points[other]), palette.text, linewidth=0.9, alpha=0.35, linestyle=_DASHES
                    )
            colour = palette.series[at % len(palette.series)]
            _draw_points(axes, points[at], colour)
            if self.second is not None:
                _draw_second(axes, self.series[at].points(self.second), colour, depth)
            if self.paper:
                _draw_paper(axes, points[at], palette.text, depth)
            axes.set_title(wrapped(self.series[at].name, 32))
            tick_blocks(axes, depth, apart=apart)
        found = [value for at in shown for point in points[at] for value in (*point.estimate, *point.seeds)]
        if self.paper:
            found += [point.paper for at in shown for point in points[at]]
        reach = 1.1 * max((abs(value) for value in found if value is not None), default=0.0) or 1.0
        scale_panels(panels, found, limits=(-reach, reach) if self.centred else None)
        for at, axes in zip(shown, panels, strict=True):
            _draw_lca(axes, points[at], palette.series[at % len(palette.series)], depth)
            _mark_undefined(axes, points[at], palette.text, depth)
        figure.supylabel(self.name)
        handles = list(self._legend(palette, [points[at] for at in shown]))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), frameon=False)
        return figure

    def _legend(self, palette: Palette, points: Sequence[Sequence[Point]]) -> Iterator[Artist]:
        flat = [point for one in points for point in one]

        def line(
            label: str,
            width: float = 0,
            *,
            alpha: float = 1.0,
            marker: str = "",
            size: float = 4,
            fill: Literal["full", "none"] = "full",
            linestyle: Dashes = "-",
        ) -> Line2D:
            handle = Line2D([], [], color=palette.text, linewidth=width, linestyle=linestyle, alpha=alpha, label=label)
            handle.set(marker=marker, markersize=size, fillstyle=fill)
            return handle

        def area(label: str) -> Patch:
            return Patch(color=palette.text, alpha=0.2, linewidth=0, label=label)

        several = any(len(point.seeds) > 1 for point in flat)
        single = [point for point in flat if len(point.seeds) == 1]
        yield line(" or ".join(["mean over seeds"] * several + ["one model"] * bool(single)), 2, marker="o")
        if several:
            yield line("one seed", 0.8, alpha=0.55)
        over = ["seeds (Student t)"] * several
        unit = self.series[0].members[0].unit
        over += [f"{unit} (bootstrap)"] * any(point.estimate.low is not None for point in single)
        if over:
            yield area(f"95 % band over {' or '.join(over)}")
        if self.second is not None:
            yield line(self.second_name, marker="D", size=3.5, alpha=0.45)
        if self.paper and any(point.paper is not None for point in flat):
            yield line("paper", marker="o", size=8, fill="none")
        if any(point.name == LCA for point in flat):
            yield line("LCA, attention over layers", marker="s", size=5)
        if any(point.estimate.value is None for point in flat):
            yield line("undefined", marker="x", size=6)
        if len(points) > 1:
            yield line("the other models", 0.9, alpha=0.35, linestyle=_DASHES)


def grid_of_panels(count: int, *, most: int, height: float = 2.1) -> tuple[Figure, list[Axes]]:
    """Make a figure with so many panels in rows.

    Args:
        count: How many.
        most: In one row.
        height: Of a row, in inches.

    Returns:
        The figure and its panels.
    """
    columns = min(most, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDE, height * max(rows, 1.3) + 0.9), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels[max(0, count - columns) : count]:
        axes.set_xlabel("block")
    return figure, panels[:count]


def tick_blocks(axes: Axes, depth: int, *, apart: Sequence[str] = ()) -> None:
    """Number the blocks 0 .. depth - 1, and name what stands apart behind them, at `place_apart`."""
    step = next(step for step in (1, 2, 3, 4, 5, 10, 20, 50) if depth <= 8 * step)
    names = {float(at): str(at) for at in range(0, depth, step)} | {
        place_apart(depth, at): name for at, name in enumerate(apart)
    }
    axes.set_xlim(-0.6, place_apart(depth, len(apart) - 1) + 0.6 if apart else depth - 0.4)
    axes.set_xticks(list(names), list(names.values()))
    axes.grid(axis="y")


def place_apart(depth: int, at: int) -> float:
    """Return where what stands apart is drawn."""
    return depth + (0.5 + at) * max(1.0, depth / 12)


def scale_panels(
    panels: Sequence[Axes], values: Sequence[float | None], *, limits: tuple[float, float] | None = None
) -> None:
    """Give all panels the same vertical axis, with a line at zero.

    Args:
        panels: The panels.
        values: All that they draw.
        limits: Of the axis; by default those of the values and zero.
    """
    known = [0.0, *(value for value in values if value is not None)]
    margin = 0.06 * (max(known) - min(known)) or 0.1
    low, high = limits or (min(known) - margin, max(known) + margin)
    for axes in panels:
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
        axes.yaxis.set_major_formatter(tick)
        axes.axhline(0, color=axes.spines["left"].get_edgecolor(), linewidth=0.8)


def _draw_points(axes: Axes, points: Sequence[Point], colour: str) -> None:
    points = _in_line(points)
    x = [point.block for point in points]
    low, high = ([_number(value) for value in column] for column in zip(*(p.estimate[1:] for p in points), strict=True))
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    if len(points[0].seeds) > 1:
        for seed in zip(*(point.seeds for point in points), strict=True):
            axes.plot(x, [_number(value) for value in seed], color=colour, linewidth=0.8, alpha=0.55)
    _draw_line(axes, points, colour, linewidth=2, marker="o", markersize=4 if len(points) <= 16 else 3)


def _draw_line(
    axes: Axes,
    points: Sequence[Point],
    colour: str,
    *,
    linewidth: float,
    alpha: float = 1.0,
    marker: str = "",
    markersize: float = 4,
    linestyle: Dashes = "-",
) -> None:
    axes.plot(
        [point.block for point in points],
        [_number(point.estimate.value) for point in points],
        color=colour,
        linewidth=linewidth,
        alpha=alpha,
        marker=marker,
        markersize=markersize,
        linestyle=linestyle,
    )


def _draw_second(axes: Axes, points: Sequence[Point], colour: str, depth: int) -> None:
    x = [_place(point, depth) for point in points]
    y = [_number(point.estimate.value) for point in points]
    axes.plot(x, y, "D", color=colour, markersize=3.5, alpha=0.45, markeredgewidth=0)


def _draw_paper(axes: Axes, points: Sequence[Point], colour: str, depth: int) -> None:
    printed = [(_place(point, depth), point.paper) for point in points if point.paper is not None]
    axes.plot([x for x, _ in printed], [y for _, y in printed], "o", color=colour, markersize=8, fillstyle="none")


def _draw_lca(axes: Axes, points: Sequence[Point], colour: str, depth: int) -> None:
    for point in points:
        value, low, high = point.estimate
        if point.name == LCA and value is not None:
            x = _place(point, depth)
            if low is not None and high is not None:
                axes.plot([x, x], [low, high], color=colour, linewidth=1.5)
            axes.plot(
                [x] * len(point.seeds), list(map(_number, point.seeds)), "s", color=colour, markersize=3, alpha=0.4
            )
            axes.plot([x], [value], "s", color=colour, markersize=5)


def _mark_undefined(axes: Axes, points: Sequence[Point], colour: str, depth: int) -> None:
    x = [_place(point, depth) for point in points if point.estimate.value is None]
    axes.plot(x, [0.0] * len(x), "x", color=colour, markersize=6)


def _in_line(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.name != LCA]


def _depth(points: Sequence[Point]) -> int:
    return max((point.block for point in _in_line(points)), default=0) + 1


def _place(point: Point, depth: int) -> float:
    return place_apart(depth, 0) if point.name == LCA else float(point.block)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
