"""Sentences and table rows of the report of `mpvg analyze`."""

from collections.abc import Sequence
from typing import NamedTuple

from mpvg.analysis.figures.numbers import estimate_text, interval_text, number
from mpvg.analysis.figures.series import Point, Series, grouped, last_receiving
from mpvg.analysis.results import BlockFindings, Estimate, Findings
from mpvg.analysis.statements import Statement
from mpvg.report.wording import NBSP, listed, percent, points

__all__ = [
    "LAST_NORM_MEASURES",
    "BlockRow",
    "CausalRow",
    "LastNormRow",
    "ModelRow",
    "StatementRow",
    "bands",
    "block_rows",
    "causal_rows",
    "headline",
    "last_norm_rows",
    "model_rows",
    "statement_rows",
]

MINUS = "\N{MINUS SIGN}"
NOTHING = "-"  # where a model has no such number
_FEW = 4

# Heading, name among the statistics, digits.
LAST_NORM_MEASURES = (
    ("var(β)", "var_beta", None),
    ("var(β + c)", "var_beta_and_constant", None),
    ("Cosine before/after", "cosine", 4),
    ("Cosine with position", "cosine_with_position", 4),
    ("r of x_L and LN′(s)", "correlation_before", 3),
    ("r of LN(x_L) and LN′(s)", "correlation_after", 3),
    ("Cosine of β and c", "cosine_beta_constant", 3),
)


class Cell(NamedTuple):
    """A value, its band, and what the paper prints; texts, empty where there is none."""

    value: str
    band: str = ""
    paper: str = ""


class ModelRow(NamedTuple):
    """One model in the overview."""

    label: str
    model: str
    scheme: str
    parameters: int
    images: int
    block: str
    correlation: Cell
    per_image: Cell
    share: Cell
    rank: Cell
    accuracy: str


class BlockRow(NamedTuple):
    """One block of one model."""

    name: str
    grid: str
    correlation: Cell
    per_image: Cell
    share: Cell
    rank: Cell


class LastNormRow(NamedTuple):
    """One model's measures at the Last LN, in the order of LAST_NORM_MEASURES."""

    label: str
    cells: list[Cell]


class StatementRow(NamedTuple):
    """One statement of the paper and what the models say to it."""

    claim: str
    where: str
    measure: str
    expected: str
    estimate: Cell
    seeds: str
    verdict: str


class CausalRow(NamedTuple):
    """One intervention."""

    block: str
    change: str
    accuracy: str
    difference: Cell
    same_answers: str


def headline(findings: Sequence[Findings]) -> str:
    """Say in one line how tokens and positions correlate where the last block receives one."""
    series = grouped(findings)
    ends = [(one, end) for one in series if (end := last_receiving(one.points(_correlation))) is not None]
    if not ends:
        return f"{listed([one.name for one in series])}: no position is delivered to the blocks"
    if len(ends) == 1:
        one, end = ends[0]
        return f"{one.name}: tokens and delivered positions correlate at {_end_text(one, end)} in block {end.name}"
    start = "Correlation of tokens and delivered positions in the last block that receives one"
    if len(ends) <= _FEW:
        return f"{start}: {'; '.join(f'{one.name} {estimate_text(end.estimate)}' for one, end in ends)}"
    known = [(end.estimate.value, one.name) for one, end in ends if end.estimate.value is not None]
    if not known:
        return f"{start}: undefined in all {len(ends)} models"
    (low, lowest), (high, highest) = min(known), max(known)
    return f"{start}: from {number(low)} ({lowest}) to {number(high)} ({highest})"


def bands(findings: Sequence[Findings]) -> str:
    """Say what stands in parentheses in a headline on several models."""
    delivering = [one for one in grouped(findings) if one.members[0].delivers]
    if not 2 <= len(delivering) <= _FEW:
        return ""
    seeds = sum(len(one.members) > 1 for one in delivering)
    over = f"over {delivering[0].members[0].unit}"
    over = over if not seeds else f"over seeds where there are several, else {over}"
    return f"Parentheses hold 95{NBSP}% intervals {over}."


def model_rows(findings: Sequence[Findings]) -> list[ModelRow]:
    """Return the overview's rows: every model's measures in the last block that receives a position."""
    rows = []
    for one in findings:
        received = [block for block in one.blocks if block.position is not None and block.name != "LCA"]
        name = f"block {received[-1].name}" if received else "nothing is delivered"
        cells = _cells(received[-1]) if received else (Cell(NOTHING),) * 4
        accuracy = NOTHING if one.accuracy is None else percent(one.accuracy)
        rows.append(ModelRow(one.label, one.model, one.scheme, one.parameters, one.images, name, *cells, accuracy))
    return rows


def statement_rows(found: Sequence[Statement]) -> list[StatementRow]:
    """Return the rows of the table of the paper's statements."""
    return [
        StatementRow(
            one.claim,
            one.where,
            one.measure,
            one.expected,
            _two_digits(one.estimate),
            f"{one.seeds} seed{'s' if one.seeds > 1 else ''}",
            one.verdict,
        )
        for one in found
    ]


def block_rows(one: Findings) -> list[BlockRow]:
    """Return the rows of a model's table of blocks."""
    return [
        BlockRow(
            block.name,
            NOTHING if block.grid is None else f"{block.grid[0]} × {block.grid[1]}",
            *(_cells(block) if block.position is not None else (Cell(NOTHING),) * 4),
        )
        for block in one.blocks
    ]


def last_norm_rows(findings: Sequence[Findings]) -> list[LastNormRow]:
    """Return the rows of the table of the Last LN."""
    return [
        LastNormRow(one.label, [_last_norm_cell(one, name, digits) for _, name, digits in LAST_NORM_MEASURES])
        for one in findings
        if one.last is not None
    ]


def causal_rows(one: Findings) -> list[CausalRow]:
    """Return the rows of a model's causal test."""
    if one.causal is None:
        return []
    return [
        CausalRow(
            change.name,
            change.change,
            NOTHING if change.accuracy is None else percent(change.accuracy),
            _difference_cell(change.difference),
            percent(change.same_answers),
        )
        for change in one.causal.interventions
    ]


def _cells(block: BlockFindings) -> tuple[Cell, Cell, Cell, Cell]:
    paper = "" if block.paper is None else number(block.paper)
    return (
        _cell(block.correlation, 3, paper),
        _cell(block.correlation_per_image, 3),
        _cell(block.variance_share, 3),
        _cell(block.effective_rank, 1),
    )


def _cell(estimate: Estimate, digits: int, paper: str = "") -> Cell:
    return Cell(number(estimate.value, digits), interval_text(estimate, digits), paper)


def _last_norm_cell(one: Findings, name: str, digits: int | None) -> Cell:
    assert one.last is not None
    value, printed = getattr(one.last.statistics, name), one.last.paper.get(name)
    paper = "" if printed is None else number(printed, digits)
    lacks_position = one.last.constant is None and one.last.position is None
    lacking = one.last.beta is None if "beta" in name else False
    if name not in ("var_beta", "var_beta_and_constant", "cosine"):
        lacking = lacking or lacks_position
    return Cell(NOTHING if value is None and lacking else number(value, digits), paper=paper)


def _two_digits(estimate: Estimate) -> Cell:
    """Write numbers of any size."""
    value, *band = ("" if one is None else f"{one:.2g}".replace("-", MINUS) for one in estimate)
    return Cell(value, " to ".join(band) if all(band) else "")


def _difference_cell(difference: Estimate) -> Cell:
    value, low, high = difference
    if value is None:
        return Cell(NOTHING)
    return Cell(points(value), "" if low is None or high is None else f"{points(low)} to {points(high)}")


def _correlation(block: BlockFindings) -> Estimate:
    return block.correlation


def _end_text(series: Series, end: Point) -> str:
    band = interval_text(end.estimate)
    if not band:
        return estimate_text(end.estimate)
    what = f"over {series.members[0].unit}" if len(series.members) == 1 else f"over {len(series.members)} seeds"
    return f"{number(end.estimate.value)} (95{NBSP}% {what}: {band})"
