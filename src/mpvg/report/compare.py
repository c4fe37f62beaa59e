"""The report of `mpvg compare`: one HTML file that needs nothing else."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mpvg.files import write_atomically
from mpvg.report import figures

__all__ = ["write_compare_report"]

_NO_DIFFERENCE = "no difference shown"
_NBSP = "\N{NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class _Drawing:
    title: str
    text: str
    svg: Markup


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
    page = _environment().get_template("compare.html.j2")
    text = page.render(
        summary=summary,
        headline=_headline(summary),
        lead=_lead(summary),
        several_seeds=_several_seeds(schemes),
        unsettled=_listed([scheme["scheme"] for scheme in schemes if not scheme["converged"]]),
        unsettled_count=sum(not scheme["converged"] for scheme in schemes),
        accuracy=_accuracy_drawings(schemes),
        curves=_curve_drawings(schemes),
        correlation=_correlation_drawing(schemes),
        without_position=_without_position(schemes),
        series_count=figures.SERIES_COUNT,
    )
    write_atomically(path, text)


def _headline(summary: Mapping[str, Any]) -> str:
    first, *others = summary["schemes"]
    start = f"{summary['model']} on {summary['data']['name']}"
    if not others:
        return f"{start}: {first['scheme']} reached {_percent(first['mean'])}; no other scheme was run"
    if not _several_seeds(summary["schemes"]):
        return f"{start}: {len(others) + 1} position schemes with one seed each, too few to tell them apart"
    groups: dict[str, list[str]] = {}
    for scheme in others:
        groups.setdefault(scheme["difference"]["verdict"], []).append(scheme["scheme"])
    parts = []
    # Claims first; the sort is stable, so within a rank the order of the table stays.
    for verdict in sorted(groups, key=lambda one: not one.startswith(("higher", "lower"))):
        names = _listed(groups[verdict])
        if verdict.startswith(("higher", "lower")):
            parts.append(f"{names} scored {verdict}")
        elif verdict == _NO_DIFFERENCE:
            parts.append(f"{verdict} between {first['scheme']} and {_listed(groups[verdict], last='or')}")
        else:
            parts.append(f"{names}: {verdict}")
    return f"{start}: {'; '.join(parts)}"


def _lead(summary: Mapping[str, Any]) -> str:
    schemes, data = summary["schemes"], summary["data"]
    seeds = [[run["seed"] for run in scheme["runs"]] for scheme in schemes]
    fewest, most = min(map(len, seeds)), max(map(len, seeds))
    if fewest != most:
        count = f"{fewest} to {most} seeds per scheme"
    else:
        count = "one seed" if most == 1 else f"{most} seeds"
        if len(schemes) > 1:
            same = all(sorted(one) == sorted(seeds[0]) for one in seeds)
            count += ", the same for every scheme" if same else " per scheme"
    what = "with one position scheme" if len(schemes) == 1 else f"with each of {len(schemes)} position schemes"
    return (
        f"The model {summary['model']} was trained {what} on {data['train']:,} images of {data['name']} ({count}) "
        f"and scored on {data['test']:,} test images kept apart."
    )


def _several_seeds(schemes: Sequence[Mapping[str, Any]]) -> bool:
    return any(len(scheme["runs"]) > 1 for scheme in schemes)


def _accuracy_drawings(schemes: Sequence[Mapping[str, Any]]) -> list[_Drawing]:
    several, reference = _several_seeds(schemes), schemes[0]
    rows = [
        figures.Row(
            name=scheme["scheme"],
            series=index,
            dots={run["seed"]: 100 * run["accuracy"] for run in scheme["runs"]},
            mean=100 * scheme["mean"],
            low=_scaled(scheme["low"]),
            high=_scaled(scheme["high"]),
        )
        for index, scheme in enumerate(schemes)
    ]
    if several:
        text = "Each dot is one seed"
        text += ", and a faint line joins the runs of the same seed. " if len(schemes) > 1 else ". "
        text += f"The upright mark is the mean, the bar its 95{_NBSP}% interval; the axis need not start at zero."
        if any(row.high is not None and row.high > 100 for row in rows):
            text += f" An interval can pass 100{_NBSP}%, as it follows from the spread of the seeds alone."
    else:
        text = "Each dot is the single run of a scheme; one seed gives no interval. The axis need not start at zero."
    label = "Dot plot of test accuracy. " + "; ".join(
        f"{scheme['scheme']} {_percent(scheme['mean'])}{_range(scheme, _percent)}" for scheme in schemes
    )
    svg = figures.draw_rows(rows, prefix="accuracy", label=label, xlabel="test accuracy (%)")
    drawings = [_Drawing("Test accuracy, seed by seed" if several else "Test accuracy", text, svg)]
    if several and len(schemes) > 1:
        drawings.append(_difference_drawing(schemes[1:], reference))
    return drawings


def _difference_drawing(schemes: Sequence[Mapping[str, Any]], reference: Mapping[str, Any]) -> _Drawing:
    rows = []
    for index, scheme in enumerate(schemes, 1):
        pairs = figures.paired_differences(scheme, reference)
        rows.append(
            figures.Row(
                name=scheme["scheme"],
                series=index,
                dots={seed: 100 * value for seed, value in pairs.items()},
                mean=100 * scheme["difference"]["mean"],
                low=_scaled(scheme["difference"]["low"]),
                high=_scaled(scheme["difference"]["high"]),
            )
        )
    name = reference["scheme"]
    label = f"Dot plot of the difference in test accuracy to {name}. " + "; ".join(
        f"{one['scheme']} {_points(one['difference']['mean'])}{_range(one['difference'], _points)} points, "
        f"{one['difference']['verdict']}"
        for one in schemes
    )
    text = (
        f"Each dot is one seed: its accuracy minus that of {name} with the same seed. "
        f"The mark and bar are the mean difference and its 95{_NBSP}% interval; a bar across zero shows no difference."
    )
    svg = figures.draw_rows(rows, prefix="difference", label=label, xlabel="percentage points", zero=True)
    return _Drawing(f"Difference to {name}, seed by seed", text, svg)


def _curve_drawings(schemes: Sequence[Mapping[str, Any]]) -> list[_Drawing]:
    accuracy = figures.curve_panels(schemes, key="val_accuracy", scale=100)
    loss = figures.curve_panels(schemes, key="train_loss")
    if not accuracy:
        return []
    thin = "Thin lines are seeds, the thick line is their mean" if _several_seeds(schemes) else "One line is one run"
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
    names = _listed([panel.name for panel in accuracy])
    return [
        _Drawing(
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
        _Drawing(
            "Training loss",
            f"The loss of the same runs on the training images. {thin}{dashed}.{scale}",
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


def _correlation_drawing(schemes: Sequence[Mapping[str, Any]]) -> _Drawing | None:
    panels = figures.correlation_panels(schemes)
    if not panels:
        return None
    lines = "Thin lines are seeds, the thick line is their mean. " if _several_seeds(schemes) else ""
    text = (
        "How far the tokens that enter a block go along with the positions delivered to it, from the first block to "
        f"the last. {lines}At zero the two are not linearly related."
    )
    svg = figures.draw_panels(
        panels,
        prefix="correlation",
        label=f"Correlation of tokens and delivered positions by block for {_listed([one.name for one in panels])}.",
        xlabel="block",
        ylabel="correlation",
        centred=True,
    )
    return _Drawing("Tokens and positions by depth", text, svg)


def _without_position(schemes: Sequence[Mapping[str, Any]]) -> str:
    names = [one["scheme"] for one in schemes if all(run["correlation"] is None for run in one["runs"])]
    if not names:
        return ""
    many = len(names) > 1
    verb, no_line = ("deliver", "have no line here") if many else ("delivers", "has no line here")
    if len(names) == len(schemes):
        no_line = "there is nothing to correlate with the tokens"
        return f"{_listed(names)} {verb} no position to the blocks, so {no_line}."
    return f"{_listed(names)} {verb} no position to the blocks and {no_line}."


def _listed(names: Sequence[str], *, last: str = "and") -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def _scaled(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}{_NBSP}%".replace("-", _MINUS)


def _points(fraction: float) -> str:
    text = f"{100 * fraction:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", _MINUS)


def _range(entry: Mapping[str, Any], shown: Any) -> str:
    return "" if entry["low"] is None else f" ({shown(entry['low'])} to {shown(entry['high'])})"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mpvg.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=_percent, points=_points, duration=_duration, plain=_plain)
    return environment
