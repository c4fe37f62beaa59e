"""The report of `mpvg compare`: one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpvg.files import write_atomically
from mpvg.report import figures
from mpvg.report.class_figures import opacity
from mpvg.report.classes import classes_section
from mpvg.report.page import template
from mpvg.report.rates import rates_section
from mpvg.report.samples import samples_of
from mpvg.report.svg import SERIES_COUNT, Drawing
from mpvg.report.wording import (
    NBSP,
    headline,
    interval,
    lead,
    listed,
    percent,
    points,
    scaled,
    several_seeds,
    shape_in_words,
    shown_settings,
    without_position,
)

__all__ = ["write_compare_report"]


def write_compare_report(summary: Mapping[str, Any], path: Path) -> None:
    """Write the comparison of position schemes as one self-contained HTML file.

    Args:
        summary: What was compared and measured, as `mpvg compare` records it (JSON values only).
        path: The file to write. Its folder must exist; a file already there is replaced in one step.

    Raises:
        ValueError: The summary lists no scheme.
        KeyError: The summary lacks a required entry.
        OSError: The file cannot be written.
    """
    schemes = summary["schemes"]
    if not schemes:
        raise ValueError("the summary lists no scheme, so there is nothing to report")
    text = template("compare.html.j2").render(
        summary=summary,
        headline=headline(summary),
        lead=lead(summary),
        settings=shown_settings(summary["settings"]),
        several_seeds=several_seeds(schemes),
        unsettled=listed([scheme["scheme"] for scheme in schemes if not scheme["converged"]]),
        unsettled_count=sum(not scheme["converged"] for scheme in schemes),
        accuracy=_accuracy_drawings(schemes),
        curves=_curve_drawings(schemes),
        correlation=_correlation_drawing(schemes),
        without_position=without_position(schemes),
        classes=classes_section(summary),
        samples=samples_of(summary),
        shuffles=all(scheme["shuffled"] is not None for scheme in schemes),
        shape=shape_in_words(summary["data"]),
        rates=rates_section(summary["lr_trials"]),
        opacity=opacity,
        series_count=SERIES_COUNT,
    )
    write_atomically(path, text)


def _accuracy_drawings(schemes: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    several, reference = several_seeds(schemes), schemes[0]
    rows = [
        figures.Row(
            name=scheme["scheme"],
            series=index,
            dots={run["seed"]: 100 * run["accuracy"] for run in scheme["runs"]},
            mean=100 * scheme["mean"],
            low=scaled(scheme["low"]),
            high=scaled(scheme["high"]),
        )
        for index, scheme in enumerate(schemes)
    ]
    if several:
        text = "Each dot is one seed"
        text += ", and a faint line joins the runs of the same seed. " if len(schemes) > 1 else ". "
        text += f"The upright mark is the mean, the bar its 95{NBSP}% interval; the axis need not start at zero."
        if any(row.high is not None and row.high > 100 for row in rows):
            text += f" An interval can pass 100{NBSP}%, as it follows from the spread of the seeds alone."
    else:
        text = "Each dot is the single run of a scheme; one seed gives no interval. The axis need not start at zero."
    label = "Dot plot of test accuracy. " + "; ".join(
        f"{scheme['scheme']} {percent(scheme['mean'])}{interval(scheme, percent)}" for scheme in schemes
    )
    svg = figures.draw_rows(rows, prefix="accuracy", label=label, xlabel="test accuracy (%)")
    drawings = [Drawing("Test accuracy, seed by seed" if several else "Test accuracy", text, svg)]
    if several and len(schemes) > 1:
        drawings.append(_difference_drawing(schemes[1:], reference))
    return drawings


def _difference_drawing(schemes: Sequence[Mapping[str, Any]], reference: Mapping[str, Any]) -> Drawing:
    rows = []
    for index, scheme in enumerate(schemes, 1):
        pairs = figures.paired_differences(scheme, reference)
        rows.append(
            figures.Row(
                name=scheme["scheme"],
                series=index,
                dots={seed: 100 * value for seed, value in pairs.items()},
                mean=100 * scheme["difference"]["mean"],
                low=scaled(scheme["difference"]["low"]),
                high=scaled(scheme["difference"]["high"]),
            )
        )
    name = reference["scheme"]
    label = f"Dot plot of the difference in test accuracy to {name}. " + "; ".join(
        f"{one['scheme']} {points(one['difference']['mean'])}{interval(one['difference'], points)} points, "
        f"{one['difference']['verdict']}"
        for one in schemes
    )
    text = (
        f"Each dot is one seed: its accuracy minus that of {name} with the same seed. "
        f"The mark and bar are the mean difference and its 95{NBSP}% interval; a bar across zero shows no difference."
    )
    svg = figures.draw_rows(rows, prefix="difference", label=label, xlabel="percentage points", zero=True)
    return Drawing(f"Difference to {name}, seed by seed", text, svg)


def _curve_drawings(schemes: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    accuracy = figures.curve_panels(schemes, key="val_accuracy", scale=100)
    loss = figures.curve_panels(schemes, key="train_loss")
    if not accuracy:
        return []
    thin = "Thin lines are seeds, the thick line is their mean" if several_seeds(schemes) else "One line is one run"
    dashed = f"; the dashed line repeats {accuracy[0].name}" if len(schemes) > 1 else ""
    last = max(step for panel in accuracy for line in panel.lines for step in line.x)
    bottom = figures.floor_after(accuracy, step=0.2 * last)
    cut = (
        " The axes start at the lowest value after the first fifth; earlier points can lie below."
        if bottom is not None
        else ""
    )
    logarithmic = figures.spans_decades(loss)
    scale = " The scale is logarithmic." if logarithmic else ""
    names = listed([panel.name for panel in accuracy])
    return [
        Drawing(
            "Validation accuracy while training",
            f"{thin}{dashed}. The shaded strip is the last fifth of the steps, where the table takes its rise.{cut}",
            figures.draw_panels(
                accuracy,
                prefix="validation",
                label=f"Learning curves: validation accuracy by training step for {names}.",
                xlabel="training step",
                ylabel="validation accuracy (%)",
                reference=accuracy[0],
                shade_from=0.8 * last,
                bottom=bottom,
            ),
        ),
        Drawing(
            "Training loss",
            f"The loss of the same runs on the training split. {thin}{dashed}.{scale}",
            figures.draw_panels(
                loss,
                prefix="loss",
                label=f"Learning curves: training loss by training step for {names}.",
                xlabel="training step",
                ylabel="training loss",
                reference=loss[0],
                logarithmic=logarithmic,
            ),
        ),
    ]


def _correlation_drawing(schemes: Sequence[Mapping[str, Any]]) -> Drawing | None:
    panels = figures.correlation_panels(schemes)
    if not panels:
        return None
    lines = "Thin lines are seeds, the thick line is their mean. " if several_seeds(schemes) else ""
    text = (
        "How far the tokens that enter a block go along with the positions delivered to it, from the first block to "
        f"the last. {lines}At zero the two are not linearly related."
    )
    svg = figures.draw_panels(
        panels,
        prefix="correlation",
        label=f"Correlation of tokens and delivered positions by block for {listed([one.name for one in panels])}.",
        xlabel="block",
        ylabel="correlation",
        centred=True,
    )
    return Drawing("Tokens and positions by depth", text, svg)
