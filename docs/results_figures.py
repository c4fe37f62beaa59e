"""Draw the picture of docs/results.md from results/*.csv: python docs/results_figures.py"""

from __future__ import annotations

from matplotlib.figure import Figure

from mpvg.report.svg import PRINT, print_files, style
from results_tables import Runs, fashion, small_cifar
from tables import DOCS

IMAGE = DOCS / "images" / "results.png"
_MARKERS = "osD^v"


def seeds(studies: dict[str, Runs]) -> Figure:
    """Draw each run as a point and join the runs of a seed, a panel for each study."""
    figure = Figure(figsize=(9.2, 3.2), layout="constrained")
    panels = figure.subplots(1, len(studies))
    for axes, (name, found) in zip(panels, studies.items(), strict=True):
        schemes = list(found)
        for line, seed in enumerate(sorted({seed for rows in found.values() for seed in rows})):
            points = [(100 * float(rows[seed]["accuracy"]), y) for y, rows in enumerate(found.values()) if seed in rows]
            marker, colour = _MARKERS[line % len(_MARKERS)], PRINT.series[line % len(PRINT.series)]
            axes.plot(*zip(*points, strict=True), f"{marker}-", color=colour, linewidth=0.7, label=f"seed {seed}")
        axes.set(yticks=range(len(schemes)), yticklabels=schemes, ylim=(len(schemes) - 0.5, -0.5), title=name)
        axes.set_xlabel("test accuracy, %")
        axes.grid(axis="x")
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=lambda found: len(found[1]))
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


if __name__ == "__main__":
    with style(PRINT, size=10):
        figure = seeds({"CIFAR-100, narrow ViT-Lite-7/4": small_cifar(), "Fashion-MNIST, ViT-nano": fashion()})
        IMAGE.write_bytes(print_files(figure)[".png"])
