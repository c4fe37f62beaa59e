"""Draw the pictures of docs/beyond_images.md from results/beyond_images/: python docs/beyond_images_figures.py"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.figure import Figure

from beyond_images_tables import FOLDER, SCHEMES, sets
from mpvg.report.svg import PRINT, print_files, style
from tables import DOCS, rows

Curves = Mapping[str, Mapping[str, Mapping[int, float]]]  # of each scheme and seed, the correlation by block


def curves(name: str) -> Curves:
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows(FOLDER / "correlations.csv"):
        if row["set"] == name and row["correlation"]:
            found.setdefault(row["scheme"], {}).setdefault(row["seed"], {})[int(row["block"])] = float(
                row["correlation"]
            )
    return found


def depth(names: Sequence[str]) -> Figure:
    """Draw correlation of tokens and position by block: a panel a set, a thin line a seed, a thick one their mean."""
    figure = Figure(figsize=(max(2.9 * len(names), 4.2), 3.3), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for scheme, by_seed in curves(name).items():
            colour = PRINT.series[SCHEMES.index(scheme)]
            for by_block in by_seed.values():
                axes.plot(*zip(*by_block.items(), strict=True), color=colour, linewidth=0.6, alpha=0.45)
            blocks = sorted({block for by_block in by_seed.values() for block in by_block})
            mean = [fmean(by_block[block] for by_block in by_seed.values() if block in by_block) for block in blocks]
            axes.plot(blocks, mean, "o-", color=colour, linewidth=1.8, markersize=3.5, label=scheme)
        axes.axhline(0, linewidth=0.8, color="0.6", zorder=0)
        axes.set(title=name, xlabel="block", ylim=(-1, 1), xticks=range(6))
        axes.grid(axis="y")
    panels[0].set_ylabel("correlation of tokens and position")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


if __name__ == "__main__":
    with style(PRINT, size=10):
        for task in ("text", "series"):
            of_task = [one["set"] for one in sets() if one["task"] == task]
            image = DOCS / "images" / f"beyond_images_{task}.png"
            image.write_bytes(print_files(depth(of_task))[".png"])
