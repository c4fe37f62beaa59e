"""What the report says of the samples: how many of each class there are, and which were left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpvg.data.remarks import IMBALANCED_ABOVE
from mpvg.data.splits import singular
from mpvg.report import class_figures
from mpvg.report.svg import Drawing
from mpvg.report.wording import number_range

_BARS_UP_TO = 30
_SKIPPED_SHOWN = 20


@dataclass(frozen=True)
class Samples:
    """Numbers of samples per class; `counts` is drawn where classes are imbalanced.

    Args:
        unit: What samples are called, "images" say.
        one: What one of them is called.
    """

    unit: str
    one: str
    train: str
    test: str
    imbalanced: bool
    counts: Drawing | None
    skipped: list[str]
    skipped_count: int


def samples_of(summary: Mapping[str, Any]) -> Samples:
    """Say how the samples spread over the classes, and which were left out.

    Args:
        summary: The comparison's summary.

    Returns:
        What the template needs.
    """
    data = summary["data"]
    train, test = data["class_counts"]["train"], data["class_counts"]["test"]
    imbalanced = max(train) > IMBALANCED_ABOVE * min(train)
    # Where the source has no validation split, one is drawn from the training samples that are counted here.
    drawn = sum(train) > data["train"]
    return Samples(
        unit=data["unit"],
        one=singular(data["unit"]),
        train=number_range(train) + (", the validation split included" if drawn else ""),
        test=number_range(test),
        imbalanced=imbalanced,
        counts=_counts(data["classes"], train, test, unit=data["unit"]) if imbalanced else None,
        skipped=data["skipped"][:_SKIPPED_SHOWN],
        skipped_count=len(data["skipped"]),
    )


def _counts(names: list[str], train: list[int], test: list[int], *, unit: str) -> Drawing:
    order = sorted(range(len(names)), key=lambda at: -train[at])
    largest, smallest = order[0], order[-1]
    extremes = f"Most: {names[largest]} ({train[largest]:,}); fewest: {names[smallest]} ({train[smallest]:,})."
    label = f"Bars of the training {unit} of {len(names)} classes. {extremes}"
    if len(names) > _BARS_UP_TO:
        svg = class_figures.draw_sorted_counts(train, prefix="counts", label=label, unit=unit)
        return Drawing(f"Training {unit} per class", extremes, svg)
    shown = class_figures.short_names(names)
    svg = class_figures.draw_counts(
        [shown[at] for at in order],
        [train[at] for at in order],
        [test[at] for at in order],
        prefix="counts",
        label=label,
        unit=unit,
    )
    return Drawing(f"Training {unit} per class", f"Beside each bar: training {unit} / test {unit}.", svg)
