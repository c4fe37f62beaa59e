"""What the Last LN does: the paper's figures 6 and 8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mpvg.analysis.figures.maps import shape_text, shown_map
from mpvg.analysis.figures.numbers import number, tick
from mpvg.analysis.figures.tiles import Array, Band, Paint, Scale, Tile, TileFigure, diverging, heat, message
from mpvg.analysis.results import Findings, LastNormFindings
from mpvg.report.svg import Palette

__all__ = ["last_norm", "positions_in_last_norm"]

_TICKS = 0.024  # room for numbers within a tile's left, as a part of the figure's width


class _Limits(NamedTuple):
    """Axis limits of gamma, and of beta and c, common to all models."""

    gamma: tuple[float, float]
    offsets: tuple[float, float]


def positions_in_last_norm(findings: Sequence[Findings]) -> TileFigure | None:
    """Lay out the paper's figure 8: x_L, LN(x_L) and what a scheme adds to it.

    Args:
        findings: The models, a band each.

    Returns:
        The figure, with a scale for each column; None where no model adds a position.
    """
    models = [(one.label, one.last) for one in findings if one.last is not None]
    positions = [_map(last.position, last) for _, last in models if last.position is not None]
    if not positions:
        return None
    scales = (*_last_scales(models), diverging("LN′(s), the added position", positions))
    return TileFigure([_figure8_band(label, last, scales) for label, last in models], scales, height=110)


def last_norm(findings: Sequence[Findings]) -> TileFigure | None:
    """Lay out the paper's figure 6: maps around the Last LN, its gamma, its beta, and the constant c.

    Args:
        findings: The models, a band each.

    Returns:
        The figure; None where no model has a Last LN.
    """
    models = [(one.label, one.last) for one in findings if one.last is not None]
    if not models:
        return None
    scales = _last_scales(models)
    gammas = [_array(last.gamma) for _, last in models if last.gamma is not None]
    offsets = [_array(one) for _, last in models for one in (last.beta, last.constant) if one is not None]
    limits = _Limits(_limits(gammas), _limits(offsets))
    return TileFigure([_figure6_band(label, last, scales, limits) for label, last in models], scales, height=110)


def _figure8_band(label: str, last: LastNormFindings, scales: Sequence[Scale]) -> Band:
    before = Tile(heat(_map(last.before, last), scales[0]), title="x_L", below=shape_text(last.before), beside="tokens")
    after = Tile(heat(_map(last.after, last), scales[1]), title="LN(x_L)")
    if last.position is None:
        return Band(label, [[before, after, Tile(message("no position is added"))]])
    found = last.statistics
    text = (
        f"correlation with LN′(s): x_L {_beside_paper(last, 'correlation_before', found.correlation_before, 2)},  "
        f"LN(x_L) {_beside_paper(last, 'correlation_after', found.correlation_after, 2)}"
    )
    added = Tile(heat(_map(last.position, last), scales[2]), title="LN′(s)")
    return Band(label, [[before, after, added]], text)


def _figure6_band(label: str, last: LastNormFindings, scales: Sequence[Scale], limits: _Limits) -> Band:
    found = last.statistics
    parts = [
        f"cosine before and after {_beside_paper(last, 'cosine', found.cosine, 4)}",
    ]
    if last.position is not None or last.constant is not None:
        parts.append(f"with the position {_beside_paper(last, 'cosine_with_position', found.cosine_with_position, 4)}")
    if last.beta is not None:
        parts.append(f"var(β) {_beside_paper(last, 'var_beta', found.var_beta, None)}")
        parts.append(f"var(β + c) {_beside_paper(last, 'var_beta_and_constant', found.var_beta_and_constant, None)}")
    row = [
        Tile(heat(_map(last.before, last), scales[0]), title="x_L", below=shape_text(last.before), beside="tokens"),
        Tile(heat(_map(last.after, last), scales[1]), title="LN(x_L)"),
        Tile(message("the norm has no γ"))
        if last.gamma is None
        else Tile(_gamma(_array(last.gamma), limits.gamma), title="γ", below="dimensions, sorted by γ"),
        Tile(message("the norm has no β"))
        if last.beta is None
        else Tile(
            _offsets(_array(last.beta), None if last.constant is None else _array(last.constant), limits.offsets),
            title="β" if last.constant is None else "β (line) and c (dots)",
            below="dimensions, sorted by β",
        ),
    ]
    return Band(label, [row], ",   ".join(parts))


def _beside_paper(last: LastNormFindings, name: str, value: float | None, digits: int | None) -> str:
    printed = last.paper.get(name)
    return number(value, digits) + ("" if printed is None else f" (paper: {number(printed, digits)})")


def _gamma(gamma: Array, limits: tuple[float, float]) -> Paint:
    def paint(axes: Axes, palette: Palette) -> None:
        axes.plot(np.sort(gamma), color=palette.series[1], linewidth=1.5)
        _plot_axes(axes, limits)

    return paint


def _offsets(beta: Array, constant: Array | None, limits: tuple[float, float]) -> Paint:
    order = np.argsort(beta, kind="stable")

    def paint(axes: Axes, palette: Palette) -> None:
        if constant is not None:
            axes.plot(constant[order], "o", color=palette.series[2], markersize=2, markeredgewidth=0)
        axes.plot(beta[order], color=palette.series[1], linewidth=1.5)
        _plot_axes(axes, limits)

    return paint


def _plot_axes(axes: Axes, limits: tuple[float, float]) -> None:
    axes.set_ylim(*limits)
    axes.set_xticks([])
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_formatter(tick)
    axes.tick_params(axis="y", length=0)
    box = axes.get_position()
    axes.set_position((box.x0 + _TICKS, box.y0, box.width - _TICKS, box.height))
    axes.grid(axis="y")


def _last_scales(models: Sequence[tuple[str, LastNormFindings]]) -> tuple[Scale, Scale]:
    return (
        diverging("x_L, before the Last LN", [_map(last.before, last) for _, last in models]),
        diverging("LN(x_L), after it", [_map(last.after, last) for _, last in models]),
    )


def _map(values: Tensor, last: LastNormFindings) -> Array:
    return shown_map(values, last.grid)


def _array(values: Tensor) -> Array:
    return values.detach().double().numpy()


def _limits(arrays: Sequence[Array]) -> tuple[float, float]:
    """Limits that hold zero and every entry."""
    values = np.concatenate([np.zeros(1), *arrays])
    margin = 0.06 * float(np.ptp(values)) or 1.0
    return float(values.min()) - margin, float(values.max()) + margin
