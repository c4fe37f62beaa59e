"""Figures by class: confusion matrix, accuracy of each class, number of samples of each class.

Margins are computed here, since matplotlib's automatic layout takes seconds where texts are many.
"""

import math
from collections import Counter
from collections.abc import Sequence
from unicodedata import east_asian_width

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from mpvg.report.svg import GRID, RIGHT, SERIES, SERIES_COUNT, TEXT, WIDTH, WRONG, inline_svg, style
from mpvg.report.wording import NBSP

_POINTS = 72 * WIDTH
_LEVELS = 16  # steps of colour; the cells of one colour form one path, which keeps the page small


def opacity(share: float, *, right: bool) -> float:
    """Return how strongly a cell shows; errors show more than their share, as most are a few samples."""
    return share if right else 0.15 + 0.85 * math.sqrt(share)


def short_names(names: Sequence[str], limit: int = 16) -> list[str]:
    """Shorten the names of all classes, in their order, in the middle; those that would look alike get their number."""
    clean = ["".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in name) for name in names]
    shown = [_shortened(name, limit) for name in clean]
    uses = Counter(shown)
    return [
        text if uses[text] == 1 else f"{at} {_shortened(name, limit - len(f'{at} '))}"
        for at, (name, text) in enumerate(zip(clean, shown, strict=True))
    ]


def draw_confusion(
    cells: Sequence[tuple[int, int, int]], names: Sequence[str], *, prefix: str, label: str, counts: bool
) -> Markup:
    """Draw a confusion matrix: a row per true class, a column per predicted one.

    Args:
        cells: True class, predicted class and number of samples, for each pair that occurs.
        names: The classes.
        prefix: Start of every id in the SVG, unique within the page.
        label: Text alternative of the figure.
        counts: Whether to print the numbers into the cells.

    Returns:
        The SVG element, safe to put into HTML.
    """
    number = len(names)
    font, limit = (10.0, 16) if number <= 10 else (8.5, 13) if number <= 15 else (7.2, 13)
    shown = short_names(names, limit)
    longest = max(_width(name, font) for name in shown)
    left = 22 + longest
    cell = min(44.0, (_POINTS - left - 4) / number)
    upright = longest > 0.92 * cell
    bottom = 22 + (longest if upright else 1.2 * font)
    side, height = number * cell, number * cell + bottom + 4
    with style():
        figure = Figure(figsize=(WIDTH, height / 72))
        axes = figure.add_axes((left / _POINTS, bottom / height, side / _POINTS, side / height))
        axes.set_xlim(0, number)
        axes.set_ylim(number, 0)
        _fill(axes, cells, number)
        axes.hlines(range(number + 1), 0, number, color=GRID, linewidth=0.5)
        axes.vlines(range(number + 1), 0, number, color=GRID, linewidth=0.5)
        if counts:
            for true, predicted, count in cells:
                size = min(10.0, 0.5 * cell, 1.35 * cell / len(str(count)))
                axes.text(predicted + 0.5, true + 0.5, str(count), size=size, ha="center", va="center_baseline")
        middles = [at + 0.5 for at in range(number)]
        axes.set_yticks(middles, shown, fontsize=font)
        if upright:
            axes.set_xticks(middles, shown, fontsize=font, rotation=90, rotation_mode="anchor", ha="right", va="center")
        else:
            axes.set_xticks(middles, shown, fontsize=font)
        axes.tick_params(length=0, pad=3)
        axes.spines[:].set_visible(False)
        figure.text(
            10 / _POINTS, (bottom + side / 2) / height, "true class", size=10, rotation=90, ha="center", va="center"
        )
        figure.text((left + side / 2) / _POINTS, 5 / height, "predicted class", size=10, ha="center", va="bottom")
        return inline_svg(figure, prefix=prefix, label=label)


def draw_class_accuracy(
    names: Sequence[str], accuracies: Sequence[Sequence[float | None]], *, prefix: str, label: str, untested: str
) -> Markup:
    """Draw a row per class with a dot per scheme, each scheme at its own height within the rows.

    Args:
        names: The classes from top to bottom, by short names.
        accuracies: The schemes' accuracies in percent, for each class; None where it has no test sample.
        prefix: Start of every id in the SVG, unique within the page.
        label: Text alternative of the figure.
        untested: What to write of a class without a test sample.

    Returns:
        The SVG element, safe to put into HTML.
    """
    schemes = len(accuracies[0])
    row = max(15.0, 4.6 * schemes + 6)
    with style():
        figure, axes = _rows(names, row, top=20)
        for at in range(0, len(names), 2):
            axes.axhspan(at - 0.5, at + 0.5, color=TEXT, alpha=0.05, linewidth=0)
        for scheme in range(schemes):
            shift = (scheme - (schemes - 1) / 2) * 4.6 / row
            found = [(values[scheme], at + shift) for at, values in enumerate(accuracies) if values[scheme] is not None]
            colour = SERIES[scheme % SERIES_COUNT]
            axes.plot(*zip(*found, strict=True), "o", color=colour, markersize=4.6, markeredgewidth=0, clip_on=False)
        for at, values in enumerate(accuracies):
            if all(value is None for value in values):
                axes.text(0.02, at, untested, transform=axes.get_yaxis_transform(), size=10, va="center")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        axes.tick_params(axis="x", labeltop=True)
        axes.grid(axis="x")
        axes.set_xlabel("test accuracy of the class (%)")
        return inline_svg(figure, prefix=prefix, label=label)


def draw_counts(
    names: Sequence[str], train: Sequence[int], test: Sequence[int], *, prefix: str, label: str, unit: str
) -> Markup:
    """Draw a bar per class for its training samples, and write the number of its training and test samples.

    Args:
        names: The classes from top to bottom, by short names.
        train: Their training samples.
        test: Their test samples.
        prefix: Start of every id in the SVG, unique within the page.
        label: Text alternative of the figure.
        unit: What the samples are, "images" say.

    Returns:
        The SVG element, safe to put into HTML.
    """
    with style():
        figure, axes = _rows(names, 15)
        axes.barh(range(len(names)), train, height=0.7, color=RIGHT)
        for at, numbers in enumerate(zip(train, test, strict=True)):
            axes.text(numbers[0], at, f"{NBSP}{numbers[0]:,} / {numbers[1]:,}", size=9, va="center_baseline")
        axes.set_xlim(0, 1.35 * max(train))  # room for the numbers beside the longest bar
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=(1, 2, 5, 10)))
        axes.set_xlabel(f"training {unit}")
        return inline_svg(figure, prefix=prefix, label=label)


def draw_sorted_counts(train: Sequence[int], *, prefix: str, label: str, unit: str) -> Markup:
    """Draw the training samples of many classes as a profile from the largest class to the smallest.

    Args:
        train: The training samples of each class.
        prefix: Start of every id in the SVG, unique within the page.
        label: Text alternative of the figure.
        unit: What they are, "images" say.

    Returns:
        The SVG element, safe to put into HTML.
    """
    with style():
        figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
        axes = figure.subplots()
        axes.stairs(sorted(train, reverse=True), range(len(train) + 1), fill=True, color=RIGHT)
        axes.set_xlim(0, len(train))
        axes.set_ylim(0)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=(1, 2, 5, 10)))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=(1, 2, 5, 10)))
        axes.set_xlabel("classes, largest first")
        axes.set_ylabel(f"training {unit}")
        return inline_svg(figure, prefix=prefix, label=label)


def _fill(axes: Axes, cells: Sequence[tuple[int, int, int]], number: int) -> None:
    of_class = [0] * number
    for true, _, count in cells:
        of_class[true] += count
    squares: dict[tuple[str, int], list[Path]] = {}
    for true, predicted, count in cells:
        right = true == predicted
        level = math.ceil(_LEVELS * opacity(count / of_class[true], right=right))
        corners = [(predicted, true), (predicted + 1, true), (predicted + 1, true + 1), (predicted, true + 1)]
        square = Path([*corners, corners[0]], closed=True)
        squares.setdefault((RIGHT if right else WRONG, level), []).append(square)
    for (colour, level), paths in sorted(squares.items()):
        path = Path.make_compound_path(*paths)
        axes.add_patch(PathPatch(path, facecolor=colour, alpha=level / _LEVELS, linewidth=0))


def _rows(names: Sequence[str], row: float, top: float = 4) -> tuple[Figure, Axes]:
    """Make a figure with a row of so many points per class, and room for the names at its left."""
    left, bottom = 8 + max(_width(name, 10) for name in names), 38
    height = bottom + row * len(names) + top
    figure = Figure(figsize=(WIDTH, height / 72))
    axes = figure.add_axes(
        (left / _POINTS, bottom / height, (_POINTS - left - 10) / _POINTS, (height - bottom - top) / height)
    )
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names, fontsize=10)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _shortened(name: str, limit: int) -> str:
    if len(name) <= limit:
        return name
    end = (limit - 1) // 2
    return f"{name[: limit - 1 - end]}…{name[-end:]}"


def _width(text: str, size: float) -> float:
    """Estimate a width, rather too wide: the reader's font is unknown."""
    return size * sum(1.0 if east_asian_width(one) in "WF" else 0.62 for one in text)
