"""Draw the pictures of docs/cost.md and the README: python docs/cost_figures.py

`cost_growth.png` needs nothing but the program; `cost_chart.png` is drawn where results/bench has rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import timm
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bench_tables import bench_rows, is_gpu
from mpvg.cost import Cost, cost
from mpvg.cost.growth import law
from mpvg.report.svg import PRINT, print_files, style
from tables import DOCS, Row

IMAGES = DOCS / "images"
BASE = {"embed_dim": 192, "img_size": 224, "depth": 12}  # DeiT-Ti's
BATCH = 32
DEIT_TI = "mpvg_deit_tiny_patch16_224"
HEAD = 64  # width of a head, kept as the model grows
STYLES = {"mpvg": (PRINT.series[1], "o", "-", 6.0), "pvg": (PRINT.series[2], "s", (0, (4, 2)), 3.5)}
VALUES: dict[str, tuple[int, ...]] = {
    "embed_dim": (64, 128, 192, 384, 768, 1536),
    "img_size": (64, 112, 160, 224, 384, 512),
    "batch": (1, 4, 16, 64, 256, 1024),
    "depth": (2, 4, 6, 12, 24),
}
LABELS = {"embed_dim": "width D", "img_size": "tokens N", "batch": "batch B", "depth": "blocks L"}


@cache
def counted(scheme: str, **sizes: int) -> Cost:
    """Return the cost of DeiT-Ti at other sizes."""
    heads = sizes["embed_dim"] // HEAD
    return cost(timm.create_model(DEIT_TI, scheme=scheme, device="meta", num_heads=heads, **sizes))


def by_law(scheme: str, *, embed_dim: float, img_size: float, depth: float, batch: float) -> float:
    part = (depth - 1) / depth if scheme == "pvg" else 1  # PVG leaves out the first block and adds nothing at the end
    return law(width=embed_dim, tokens=(img_size / 16) ** 2, batch=batch, added=part, norms=part)


def growth() -> Figure:
    """Draw the law as lines and counted models as points, a panel for each size."""
    figure = Figure(figsize=(9.2, 5.6), layout="constrained")
    panels = figure.subplots(2, 2)
    for axes, varied in zip(panels.flat, VALUES, strict=True):
        handles = [_draw_scheme(axes, scheme, varied, style) for scheme, style in STYLES.items()]
        ticks = [_shown(varied, value) for value in VALUES[varied]]
        axes.set(xscale="log", xlabel=LABELS[varied], ylim=(0, None))
        axes.set(xticks=ticks, xticklabels=[f"{tick:,.0f}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(axis="y")
    for axes in panels[:, 0]:
        axes.set_ylabel("FLOPs beyond gap's, %")
    names = [name for scheme in STYLES for name in (f"{scheme}, formula", f"{scheme}, counted")]
    figure.legend([one for pair in handles for one in pair], names, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _draw_scheme(axes: Axes, scheme: str, varied: str, style: tuple[str, str, Any, float]) -> list[Any]:
    """Draw the law of one scheme as a line and what is counted as points, and return both."""
    colour, marker, dashes, size = style
    base, values = {**BASE, "batch": BATCH}, VALUES[varied]
    fine = np.geomspace(values[0], values[-1], 100).tolist()
    line = [100 * by_law(scheme, **{**base, varied: value}) for value in fine]
    points = []
    for value in values:
        sizes = {**base, varied: value}
        batch = sizes.pop("batch")
        points.append(100 * counted(scheme, **sizes).extra(counted("gap", **sizes), batch)["flops"])
    return [
        axes.plot([_shown(varied, value) for value in fine], line, color=colour, linestyle=dashes, linewidth=1.4)[0],
        axes.plot([_shown(varied, value) for value in values], points, marker, color=colour, markersize=size)[0],
    ]


def _shown(varied: str, value: Any) -> Any:
    return (value / 16) ** 2 if varied == "img_size" else value


def chart(found: Sequence[Row]) -> Figure:
    """Draw measured ratios with their intervals around the line at 1.00, a row for each measurement.

    Args:
        found: Rows of results/bench, in the order in which they are to stand.
    """
    figure = Figure(figsize=(7.0, 1.2 + 0.46 * len(found)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1, color=PRINT.text, linewidth=1)
    colours = {work: PRINT.series[index] for index, work in enumerate(dict.fromkeys(row["work"] for row in found), 1)}
    for y, row in enumerate(found):
        middle, low, high = (float(row[name]) for name in ("ratio", "low", "high"))
        colour = colours[row["work"]]
        if row["noise_low"] and row["noise_high"]:
            axes.plot([float(row["noise_low"]), float(row["noise_high"])], [y, y], color=PRINT.grid, linewidth=11)
        axes.plot([low, high], [y, y], color=colour, linewidth=2.2)
        axes.plot([middle], [y], "o", color=colour, markersize=6)
        axes.annotate(f"{middle:.3f}", (1, y), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="center", annotation_clip=False)  # fmt: skip
    axes.set(yticks=range(len(found)), yticklabels=[_name(row) for row in found], ylim=(len(found) - 0.5, -0.5))
    axes.set_xlabel("ratio of times, 95 % interval; grey: a model beside itself")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    handles = [axes.plot([], [], "o-", color=colour)[0] for colour in colours.values()]
    figure.legend(handles, list(colours), loc="outside upper center", ncols=len(colours), frameon=False)
    return figure


def _name(row: Row) -> str:
    where = row["hardware"] if is_gpu(row) else "CPU"
    model = row["model"].removeprefix("mpvg_").removesuffix("_patch16_224").removesuffix("_patch4_window7_224")
    folded = ", folded" if row["variant"] == "folded" else ""
    return f"{model}, {row['scheme']}{folded}\n{row['mode']}, batch {row['batch']}, {where}"


def is_shown(row: Row) -> bool:
    """Say whether the small chart has this row: DeiT-Ti under mpvg, at the larger batch, where a ratio was told."""
    usual = row["mode"] == "eager" or row["variant"] == "folded" or row["work"] == "training"
    return bool(row["ratio"]) and usual and (row["model"], row["scheme"], row["batch"]) == (DEIT_TI, "mpvg", "32")


def draw(name: str, make: Callable[[], Any]) -> None:
    with style(PRINT, size=10):
        (IMAGES / name).with_suffix(".png").write_bytes(print_files(make())[".png"])


if __name__ == "__main__":
    draw("cost_growth", growth)
    shown = [row for row in bench_rows() if is_shown(row)]
    if shown:
        draw("cost_chart", lambda: chart(shown))
