"""Which classes the schemes tell apart: what the report shows of the best run of each scheme."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mpvg.data.splits import singular
from mpvg.report import class_figures
from mpvg.report.svg import Drawing
from mpvg.report.wording import listed, number_range, percent, several_seeds, tenths

_NUMBERED_UP_TO = 15  # classes of a matrix with numbers in its cells
_MATRIX_UP_TO = 30
_DOTS_UP_TO = 20
_TABLE_UP_TO = 1000
_MOST = 10  # rows of a table that shows not all

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Confusion:
    """Test samples of one class that were taken for another."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Confused:
    """The most frequent confusions of one scheme's best run."""

    scheme: str
    text: str
    confusions: Sequence[Confusion]


@dataclass(frozen=True)
class ClassRow:
    """One class with its accuracy in the best run of each scheme; none if it has no test sample."""

    index: int
    name: str
    trained: int
    tested: int
    accuracies: Sequence[float | None]

    @property
    def known(self) -> list[float]:
        return [value for value in self.accuracies if value is not None]

    @property
    def mean(self) -> float:
        return fmean(self.known)

    @property
    def spread(self) -> float:
        return max(self.known) - min(self.known)


@dataclass(frozen=True)
class Classes:
    """Content of the section; what does not suit the number of classes is empty."""

    text: str
    matrices: Sequence[Drawing]
    confused: Sequence[Confused]
    accuracy: Drawing | None
    worst: Sequence[ClassRow]
    widest: Sequence[ClassRow]
    table: Sequence[ClassRow]
    total: int


def classes_section(summary: Entry) -> Classes:
    """Choose by the number of classes what to show, and draw it.

    Args:
        summary: The comparison's summary.

    Returns:
        What the template needs.
    """
    schemes, unit = summary["schemes"], summary["data"]["unit"]
    rows = class_rows(summary)
    tested = [row for row in rows if row.known]
    few = len(rows) <= _DOTS_UP_TO
    compared = len(schemes) > 1
    matrix = len(rows) <= _MATRIX_UP_TO
    return Classes(
        text=_text(schemes, rows, unit),
        matrices=[_matrix(scheme, at, unit) for at, scheme in enumerate(schemes)] if matrix else [],
        confused=[] if matrix else [Confused(one["scheme"], _score(one, unit), confusions(one)) for one in schemes],
        accuracy=_accuracy(schemes, rows, unit) if few else None,
        worst=[] if few else sorted(tested, key=lambda row: row.mean)[:_MOST],
        widest=sorted(tested, key=lambda row: -row.spread)[:_MOST] if compared and not few else [],
        table=rows if len(rows) <= _TABLE_UP_TO else [],
        total=len(rows),
    )


def class_rows(summary: Entry) -> list[ClassRow]:
    """Collect the accuracies of each class over the schemes, in the order of the classes."""
    by_class = zip(*(scheme["best"]["per_class"] for scheme in summary["schemes"]), strict=True)
    trained = summary["data"]["class_counts"]["train"]
    return [
        ClassRow(index, of[0]["name"], trained[index], of[0]["samples"], [one["accuracy"] for one in of])
        for index, of in enumerate(by_class)
    ]


def confusions(scheme: Entry, most: int = _MOST) -> list[Confusion]:
    """List a scheme's most frequent confusions, most samples first, then the larger share of the class."""
    classes = scheme["best"]["per_class"]
    found = [
        Confusion(classes[true]["name"], classes[predicted]["name"], count, count / classes[true]["samples"])
        for true, predicted, count in scheme["best"]["confusion"]
        if true != predicted
    ]
    return sorted(found, key=lambda one: (-one.count, -one.share))[:most]


def _text(schemes: Sequence[Entry], rows: Sequence[ClassRow], unit: str) -> str:
    if several_seeds(schemes):
        text = (
            "Each scheme is shown by its best run: the one with the highest validation accuracy at its end. The test "
            "split had no part in that choice; all that follows is counted on it."
        )
    else:
        text = "Each scheme has one run; all that follows is counted on its test split."
    tested = [row.tested for row in rows if row.tested]
    which = "any" if min(tested) == max(tested) else "the smallest"
    text += f" Test {unit} per class: {number_range(tested)}; "
    text += f"in {which} class one {singular(unit)} makes {100 / min(tested):.1f} percentage points."
    without = [row.name for row in rows if not row.tested]
    if without:
        more = [f"{len(without) - 5} more"] if len(without) > 5 else []
        text += f" Without a test {singular(unit)}, and so without an accuracy: {listed([*without[:5], *more])}."
    return text


def _score(scheme: Entry, unit: str) -> str:
    best = scheme["best"]
    tested = sum(entry["samples"] for entry in best["per_class"])
    return (
        f"Seed {best['seed']}: {percent(best['accuracy'])} of {tested:,} test {unit}, "
        f"{percent(best['val_accuracy'])} in validation."
    )


def _matrix(scheme: Entry, at: int, unit: str) -> Drawing:
    names = [entry["name"] for entry in scheme["best"]["per_class"]]
    most = [
        f"{one.true} → {one.predicted} ({one.count:,}, {tenths(one.share)} of the class)"
        for one in confusions(scheme, most=3)
    ]
    text = f"{_score(scheme, unit)} " + (
        f"Most often confused: {'; '.join(most)}." if most else f"No {singular(unit)} was misclassified."
    )
    svg = class_figures.draw_confusion(
        [(true, predicted, count) for true, predicted, count in scheme["best"]["confusion"]],
        names,
        prefix=f"confusion-{at}",
        label=f"Confusion matrix of {scheme['scheme']} with {len(names)} classes. {text}",
        counts=len(names) <= _NUMBERED_UP_TO,
    )
    return Drawing(scheme["scheme"], text, svg, wide=len(names) > 10)


def _accuracy(schemes: Sequence[Entry], rows: Sequence[ClassRow], unit: str) -> Drawing:
    # Classes without a test sample come last.
    ordered = sorted(rows, key=lambda row: row.mean if row.known else 2.0)
    names = [scheme["scheme"] for scheme in schemes]
    shown = class_figures.short_names([row.name for row in rows])
    svg = class_figures.draw_class_accuracy(
        [shown[row.index] for row in ordered],
        [[None if value is None else 100 * value for value in row.accuracies] for row in ordered],
        prefix="classes",
        label=f"Dot plot of the accuracy of {len(rows)} classes for {listed(names)}: see the table of every class.",
        untested=f"no test {singular(unit)}",
    )
    run = "best run" if several_seeds(schemes) else "run"
    text = f"Each dot is the {run} of one scheme. " if len(names) > 1 else "Each dot is one class. "
    text += "The class with the lowest mean is at the top; the axis need not start at zero."
    return Drawing("Accuracy of each class", text, svg, key=names if len(names) > 1 else ())
