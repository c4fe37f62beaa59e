"""Draw the picture of docs/finetuning.md from results/finetuning/cifar100.csv: python docs/finetuning_figures.py"""

from __future__ import annotations

from matplotlib.figure import Figure

from finetuning_tables import KINDS, Accuracies, accuracies
from mpvg.report.svg import PRINT, print_files, style
from mpvg.stats import student_interval
from tables import DOCS

IMAGE = DOCS / "images" / "finetuning.png"
STARTS = {"preserving": ("o", PRINT.series[1]), "norms at one": ("s", PRINT.series[2])}


def starts(found: Accuracies) -> Figure:
    """Draw each seed as a point and each 95 % interval as a line, a panel for each kind of pretrained model."""
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharex=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        schemes = [scheme for start, scheme in found if start == f"{kind}, preserving"]
        for line, (how, (marker, colour)) in enumerate(STARTS.items()):
            for row, scheme in enumerate(schemes):
                values = list(found[f"{kind}, {how}", scheme].values())
                _, low, high = student_interval(values)
                y = row + 0.3 * line - 0.15
                axes.plot([low, high], [y, y], color=colour, linewidth=1.4)
                label = how if row == 0 else None
                axes.plot(values, [y] * len(values), marker, color=colour, markersize=4.5, linestyle="", label=label)
        axes.set(yticks=range(len(schemes)), yticklabels=schemes, ylim=(len(schemes) - 0.5, -0.5))
        axes.set(title=f"pretrained with {'a class token' if kind == 'class token' else 'average pooling'}")
        axes.set_xlabel("test accuracy after fine-tuning, %")
        axes.grid(axis="x")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    with style(PRINT, size=10):
        IMAGE.write_bytes(print_files(starts(accuracies()))[".png"])
