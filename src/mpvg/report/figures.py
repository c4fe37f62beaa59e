"""Figures of runs: dot plots of accuracies, and curves by training step or by block."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mpvg.report.svg import SERIES, SERIES_COUNT, TEXT, WIDTH, inline_svg, style

__all__ = [
    "Line",
    "Panel",
    "Row",
    "correlation_panels",
    "curve_panels",
    "draw_panels",
    "draw_rows",
    "floor_after",
    "paired_differences",
    "spans_decades",
]

_STEPS = (1, 2, 5, 10)  # distances between ticks


@dataclass(frozen=True)
class Line:
    """One run's values; a value that is not finite leaves a gap."""

    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One scheme's runs in a figure of small multiples; `series` picks the colour."""

    name: str
    series: int
    lines: Sequence[Line]


@dataclass(frozen=True)
class Row:
    """One scheme in a dot plot: a value per seed, their mean and the mean's interval."""

    name: str
    series: int
    dots: Mapping[int, float]
    mean: float
    low: float | None
    high: float | None


def curve_panels(schemes: Sequence[Mapping[str, Any]], *, key: str, scale: float = 1.0) -> list[Panel]:
    """Collect one learning curve of every run.

    Args:
        schemes: The `schemes` of a comparison's summary.
        key: The curve to take: "train_loss" or "val_accuracy".
        scale: Factor put on every value.

    Returns:
        One panel per scheme, in order; empty if no run recorded the curve.
    """
    panels = []
    for index, scheme in enumerate(schemes):
        curves = [run["curve"] for run in scheme["runs"]]
        lines = [Line(curve["step"], _numbers(curve[key], scale)) for curve in curves]
        panels.append(Panel(scheme["scheme"], index, lines))
    return panels if any(line.x for panel in panels for line in panel.lines) else []


def correlation_panels(schemes: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Collect the correlations by depth of the schemes that deliver a position.

    Args:
        schemes: The `schemes` of a comparison's summary.

    Returns:
        One panel per scheme with at least one run that has correlations.
    """
    panels = []
    for index, scheme in enumerate(schemes):
        found = [run["correlation"] for run in scheme["runs"] if run["correlation"] is not None]
        if found:
            lines = [Line(one["block"], _numbers(one["value"])) for one in found]
            panels.append(Panel(scheme["scheme"], index, lines))
    return panels


def paired_differences(scheme: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[int, float]:
    """Subtract the reference's accuracy from a scheme's, seed by seed.

    Args:
        scheme: The scheme's entry in the summary.
        reference: The reference scheme's entry in the summary.

    Returns:
        Seed to difference, for the seeds that both schemes ran.
    """
    base = {run["seed"]: run["accuracy"] for run in reference["runs"]}
    return {run["seed"]: run["accuracy"] - base[run["seed"]] for run in scheme["runs"] if run["seed"] in base}


def floor_after(panels: Sequence[Panel], *, step: float) -> float | None:
    """Find the lowest value from a step on, so that the climb at the start need not flatten the rest.

    Args:
        panels: The panels of a figure.
        step: The first step that counts.

    Returns:
        A little less than that value, or None where no earlier value is lower.
    """
    late = [y for panel in panels for line in panel.lines for x, y in zip(line.x, line.y, strict=True) if x >= step]
    late = [y for y in late if math.isfinite(y)]
    values = _finite(panels)
    if not late or min(values) >= min(late) or max(values) <= min(late):
        return None
    return min(late) - 0.05 * (max(values) - min(late))


def spans_decades(panels: Sequence[Panel]) -> bool:
    """Tell whether the values call for a logarithmic axis: all above zero and more than 20-fold apart."""
    values = _finite(panels)
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def draw_rows(rows: Sequence[Row], *, prefix: str, label: str, xlabel: str, zero: bool = False) -> Markup:
    """Draw a dot plot with one row per scheme: a dot per seed, and above them the mean and its interval.

    Args:
        rows: The rows from top to bottom.
        prefix: Start of every id in the SVG, unique within the page.
        label: Text alternative of the figure.
        xlabel: Label of the value axis.
        zero: Whether to mark zero, which the axis then always shows. Otherwise lines join the dots of one seed.

    Returns:
        The SVG element, safe to put into HTML.
    """
    with style():
        figure = Figure(figsize=(WIDTH, 0.62 + 0.46 * len(rows)), layout="constrained")
        axes = figure.subplots()
        seeds = sorted({seed for row in rows for seed in row.dots})
        # Equal values are common (few test images), so each seed keeps its own height within a row.
        many = len(seeds) > 1
        heights = {seed: 0.3 * (at + 0.5) / len(seeds) if many else 0.0 for at, seed in enumerate(seeds)}
        size = 4.5 if many else 6.5
        if zero:
            axes.axvline(0, color=TEXT, linewidth=1)
        elif many:
            for seed in seeds:
                values = [row.dots.get(seed, math.nan) for row in rows]
                axes.plot(
                    values, [at + heights[seed] for at in range(len(rows))], color=TEXT, alpha=0.25, linewidth=0.7
                )
        for at, row in enumerate(rows):
            colour = SERIES[row.series % SERIES_COUNT]
            for seed, value in row.dots.items():
                axes.plot(
                    [value], [at + heights[seed]], "o", color=colour, markersize=size, alpha=0.8, markeredgewidth=0
                )
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [at - 0.2] * 2, color=colour, linewidth=2.2)
            if len(row.dots) > 1:
                axes.plot([row.mean] * 2, [at - 0.33, at - 0.07], color=colour, linewidth=2.2)
        axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.55)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(_signed_tick if zero else _tick))
        axes.grid(axis="x")
        axes.set_xlabel(xlabel)
        return inline_svg(figure, prefix=prefix, label=label)


def draw_panels(
    panels: Sequence[Panel],
    *,
    prefix: str,
    label: str,
    xlabel: str,
    ylabel: str,
    reference: Panel | None = None,
    shade_from: float | None = None,
    bottom: float | None = None,
    logarithmic: bool = False,
    centred: bool = False,
) -> Markup:
    """Draw small multiples on common axes: a thin line per seed and a thick one for their mean.

    Args:
        panels: The panels, at least one.
        prefix: Start of every id in the SVG, unique within the page.
        label: Text alternative of the figure.
        xlabel: Label of the horizontal axes.
        ylabel: Label of the vertical axes.
        reference: Scheme whose mean every other panel repeats as a dashed line.
        shade_from: Where the shaded strip at the end of each panel starts.
        bottom: Where the vertical axes start; lower values are cut off.
        logarithmic: Whether the vertical axes are logarithmic.
        centred: Whether the vertical axes reach equally far to both sides of zero.

    Returns:
        The SVG element, safe to put into HTML.
    """
    with style():
        columns = min(2, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure = Figure(figsize=(WIDTH, 0.5 + max(2.1, 1.32 * rows)), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, panel, reference=reference, shade_from=shade_from)
            # The empty last cell of an odd count leaves its upper neighbour without tick labels otherwise.
            axes.tick_params(labelbottom=axes in grid.flat[max(0, len(panels) - columns) : len(panels)])
        _scale_y(grid.flat[0], panels, logarithmic=logarithmic, centred=centred)
        if bottom is not None:
            grid.flat[0].set_ylim(bottom=bottom)
        grid.flat[0].xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=_STEPS))
        grid.flat[0].xaxis.set_major_formatter(FuncFormatter(_tick))
        figure.supxlabel(xlabel)
        figure.supylabel(ylabel)
        return inline_svg(figure, prefix=prefix, label=label)


def _draw_panel(axes: Axes, panel: Panel, *, reference: Panel | None, shade_from: float | None) -> None:
    colour = SERIES[panel.series % SERIES_COUNT]
    axes.grid(True)
    if shade_from is not None:
        axes.axvspan(shade_from, max(x for line in panel.lines for x in line.x), color=TEXT, alpha=0.07, linewidth=0)
    if reference is not None and reference.series != panel.series:
        base = _mean(reference.lines)
        axes.plot(base.x, base.y, color=TEXT, linewidth=1, linestyle=(0, (3, 2)), alpha=0.75)
    # A line of few points needs markers: with a single point it would not show at all.
    marker = "o" if all(len(line.x) <= 16 for line in panel.lines) else ""
    for line in panel.lines:
        axes.plot(line.x, line.y, color=colour, linewidth=0.8, alpha=0.55, marker=marker, markersize=2)
    mean = _mean(panel.lines)
    axes.plot(mean.x, mean.y, color=colour, linewidth=2, marker=marker, markersize=4)
    axes.set_title(_short(panel.name))


def _scale_y(axes: Axes, panels: Sequence[Panel], *, logarithmic: bool, centred: bool) -> None:
    values = _finite(panels)
    if logarithmic:
        axes.set_yscale("log")
        subs = (1.0,) if max(values) > 300 * min(values) else (1.0, 3.0)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(_signed_tick if centred else _tick))
    if centred:
        reach = 1.15 * max((abs(value) for value in values), default=0.0) or 0.1
        axes.set_ylim(-reach, reach)
        for other in axes.figure.axes:
            if other.axison:
                other.axhline(0, color=TEXT, linewidth=1)


def _mean(lines: Sequence[Line]) -> Line:
    """Averages over the runs where every one of them has a finite value."""
    values: dict[float, list[float]] = {}
    for line in lines:
        for x, y in zip(line.x, line.y, strict=True):
            values.setdefault(x, []).append(y)
    common = sorted(x for x, ys in values.items() if len(ys) == len(lines) and all(map(math.isfinite, ys)))
    return Line(common, [fmean(values[x]) for x in common])


def _numbers(values: Iterable[float | None], scale: float = 1.0) -> list[float]:
    return [math.nan if value is None else value * scale for value in values]


def _finite(panels: Sequence[Panel]) -> list[float]:
    return [y for panel in panels for line in panel.lines for y in line.y if math.isfinite(y)]


def _short(name: str, limit: int = 16) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _tick(value: float, _position: int | None = None) -> str:
    value = round(value, 9)
    text = f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _signed_tick(value: float, _position: int | None = None) -> str:
    return f"+{_tick(value)}" if round(value, 9) > 0 else _tick(value)
