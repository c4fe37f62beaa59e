"""Figures made of tiles: heat maps, pictures and small plots in rows, with the colour bars above.

Margins are computed here, since matplotlib's automatic layout takes seconds where tiles are many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mpvg.report.svg import WIDE, Palette

__all__ = [
    "Array",
    "Band",
    "Paint",
    "Scale",
    "Tile",
    "TileFigure",
    "diverging",
    "heat",
    "message",
    "picture",
    "sequential",
]

Array = npt.NDArray[np.float64]
Paint = Callable[[Axes, Palette], None]

_WIDTH, _LEFT, _RIGHT, _GAP = 72 * WIDE, 30.0, 4.0, 9.0  # points
_LINE = 11.5  # from one line of text to the next
_BARS, _TITLE = 42.0, 20.0
_SIZE, _SMALL = 9.0, 8.5


@dataclass(frozen=True)
class Scale:
    """Colours for numbers.

    Args:
        name: What the colours mean, for the colour bar.
        low: The number of the first colour; lower ones have it too.
        high: That of the last colour, likewise.
        colours: The name of matplotlib's colour map.
    """

    name: str
    low: float
    high: float
    colours: str


@dataclass(frozen=True)
class Tile:
    """One cell of a figure.

    Args:
        paint: Draws it.
        title: Lines above.
        below: A line under it.
        beside: Upright text at its left.
    """

    paint: Paint
    title: str = ""
    below: str = ""
    beside: str = ""


@dataclass(frozen=True)
class Band:
    """Rows of tiles under one heading; None leaves a cell empty."""

    title: str
    rows: Sequence[Sequence[Tile | None]]
    text: str = ""


@dataclass(frozen=True)
class TileFigure:
    """Bands of tiles of one size.

    Args:
        bands: From top to bottom.
        scales: Each gets a colour bar.
        height: Of a tile, in points; by default tiles are square.
        widest: A tile's greatest width, in points.
    """

    bands: Sequence[Band]
    scales: Sequence[Scale]
    height: float | None = None
    widest: float = 260.0

    def draw(self, palette: Palette) -> Figure:
        """Return the figure in given colours."""
        columns = max(len(row) for band in self.bands for row in band.rows)
        width = min(self.widest, (_WIDTH - _LEFT - _RIGHT - _GAP * (columns - 1)) / columns)
        height = width if self.height is None else self.height
        sheet = _Sheet(_BARS + sum(_band_height(band, height) for band in self.bands))
        _draw_bars(sheet, self.scales, palette)
        top = _BARS
        for band in self.bands:
            _draw_band(sheet, band, top, (width, height), palette)
            top += _band_height(band, height)
        return sheet.figure


def diverging(name: str, arrays: Iterable[Array], *, quantile: float = 0.995) -> Scale:
    """Return a scale centred on zero that nearly all entries fit into.

    Args:
        name: What the colours mean.
        arrays: All that is drawn with it, any shapes.
        quantile: The part of the entries' sizes below the limit.

    Returns:
        The scale; its limit has two digits.
    """
    limit = float(f"{np.quantile(np.concatenate([np.abs(one).ravel() for one in arrays]), quantile):.2g}")
    return Scale(name, -(limit or 1.0), limit or 1.0, "RdBu_r")


def sequential(name: str, arrays: Iterable[Array]) -> Scale:
    """Return a scale from the least to the greatest entry.

    Args:
        name: What the colours mean.
        arrays: All that is drawn with it, any shapes.

    Returns:
        The scale.
    """
    values = np.concatenate([one.ravel() for one in arrays])
    low, high = float(values.min()), float(values.max())
    return Scale(name, low, high if high > low else low + 1, "viridis")


def heat(values: Array, scale: Scale, *, aspect: Literal["auto", "equal"] = "auto") -> Paint:
    """Return what draws a matrix (rows, columns) as colours; "auto" stretches it to fill its tile."""

    def paint(axes: Axes, palette: Palette) -> None:
        # Interpolation "none" puts the matrix itself into an SVG, not a resampled picture of it.
        axes.imshow(values, cmap=scale.colours, vmin=scale.low, vmax=scale.high, aspect=aspect, interpolation="none")
        _frame(axes, palette)

    return paint


def picture(pixels: npt.NDArray[np.uint8]) -> Paint:
    """Return what draws an image (H, W, C) with one or three channels."""

    def paint(axes: Axes, palette: Palette) -> None:
        shown = pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels
        axes.imshow(shown, aspect="equal", interpolation="none")
        _frame(axes, palette)

    return paint


def message(text: str) -> Paint:
    """Return what writes text into an otherwise empty tile."""

    def paint(axes: Axes, palette: Palette) -> None:
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", size=_SMALL)
        axes.set_axis_off()

    return paint


class _Sheet:
    """A figure whose places are given in points from the left and the top."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDE, height / 72))

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        return self.figure.add_axes((left / _WIDTH, bottom / self.height, width / _WIDTH, height / self.height))

    def text(self, left: float, top: float, text: str, *, size: float, ha: str, va: str, turn: float = 0) -> None:
        self.figure.text(
            left / _WIDTH, 1 - top / self.height, text, size=size, ha=ha, va=va, rotation=turn, linespacing=1.15
        )


def _draw_band(sheet: _Sheet, band: Band, top: float, tile_size: tuple[float, float], palette: Palette) -> None:
    width, height = tile_size
    sheet.text(2, top + 4, band.title, size=_SIZE + 2, ha="left", va="top")
    sheet.text(2, top + _TITLE, band.text, size=_SMALL, ha="left", va="top")
    top += _TITLE + _lines(band.text)
    for row in band.rows:
        top += _lines(*_titles(row)) + 3
        for column, tile in enumerate(row):
            if tile is not None:
                left = _LEFT + column * (width + _GAP)
                tile.paint(sheet.axes(left, top, width, height), palette)
                sheet.text(left + width / 2, top - 5, tile.title, size=_SMALL, ha="center", va="baseline")
                sheet.text(left + width / 2, top + height + 3, tile.below, size=_SMALL, ha="center", va="top")
                sheet.text(left - 4, top + height / 2, tile.beside, size=_SMALL, ha="right", va="center", turn=90)
        top += height + _lines(*_belows(row)) + 5


def _band_height(band: Band, height: float) -> float:
    rows = sum(_lines(*_titles(row)) + 3 + height + _lines(*_belows(row)) + 5 for row in band.rows)
    return _TITLE + _lines(band.text) + rows + 6


def _draw_bars(sheet: _Sheet, scales: Sequence[Scale], palette: Palette) -> None:
    place = (_WIDTH - _LEFT) / max(3, len(scales))
    for at, scale in enumerate(scales):
        left, width = _LEFT + at * place, min(200.0, place - 30)
        sheet.text(left, 2, scale.name, size=_SMALL, ha="left", va="top")
        axes = sheet.axes(left, 16, width, 8)
        steps = np.linspace(scale.low, scale.high, 128)[None]
        axes.imshow(
            steps,
            cmap=scale.colours,
            vmin=scale.low,
            vmax=scale.high,
            aspect="auto",
            interpolation="none",
            extent=(scale.low, scale.high, 0, 1),
        )
        _frame(axes, palette)
        ticks = [scale.low, (scale.low + scale.high) / 2, scale.high]
        axes.set_xticks(ticks, [f"{tick:.3g}".replace("-", "\N{MINUS SIGN}") for tick in ticks])
        axes.tick_params(length=2, pad=2)


def _frame(axes: Axes, palette: Palette) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=palette.grid, linewidth=0.8)


def _titles(row: Sequence[Tile | None]) -> list[str]:
    return [tile.title for tile in row if tile is not None]


def _belows(row: Sequence[Tile | None]) -> list[str]:
    return [tile.below for tile in row if tile is not None]


def _lines(*texts: str) -> float:
    """Height of the tallest of some texts."""
    return _LINE * max((text.count("\n") + 1 for text in texts if text), default=0)
