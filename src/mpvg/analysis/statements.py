"""The paper's statements about positions, put to the test on the models at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from statistics import fmean, linear_regression
from typing import Any, NamedTuple

from mpvg.analysis.results import Estimate, Findings, by_series
from mpvg.stats import student_interval

Measure = Callable[[Findings], float | None]


@dataclass(frozen=True)
class Statement:
    """One claim and what these models say to it.

    Args:
        claim: What the paper says.
        where: The model, or the two that are compared.
        measure: The number that the claim is about; it is to be below zero, or above.
        expected: "below 0" or "above 0".
        estimate: Its mean over the seeds with the 95 % interval; without bounds for a single seed.
        seeds: How many.
        verdict: "holds", "the opposite", "not shown", or why there is no interval.
    """

    claim: str
    where: str
    measure: str
    expected: str
    estimate: Estimate
    seeds: int
    verdict: str

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "estimate": self.estimate._asdict()}


class Comparison(NamedTuple):
    """A claim on a measure of one scheme minus that of another: its sign is expected to be -1 or 1."""

    claim: str
    scheme: str
    other: str
    measure: str
    of: Measure
    sign: int


def statements(findings: Sequence[Findings]) -> list[Statement]:
    """Return the paper's statements that these models allow to test; models of one series are seeds.

    Two schemes are compared within the same model, seed by seed.

    Args:
        findings: Of all models.

    Returns:
        One statement a line, in the paper's order.
    """
    found: list[Statement] = []
    series = list(by_series(findings).values())
    for models in series:
        found += _within(models)
    for comparison in _COMPARISONS:
        for models, others in permutations(series, 2):
            schemes = models[0].scheme, others[0].scheme
            if schemes == (comparison.scheme, comparison.other) and models[0].model == others[0].model:
                found += _between(comparison, models, others)
    return found


def _within(models: Sequence[Findings]) -> list[Statement]:
    where = models[0].series
    levels, slopes = [], []
    for one in models:
        points = [
            (block.block, block.correlation.value)
            for block in one.blocks
            if block.grid is not None and block.correlation.value is not None
        ]
        if points:
            levels.append(fmean(value for _, value in points))
        if len(points) > 2:
            slopes.append(linear_regression(*zip(*points, strict=True)).slope)
    return [
        *_statement(
            "Positions counterbalance the tokens",
            where,
            "correlation of tokens and position, mean over blocks",
            levels,
            -1,
        ),
        *_statement("... the more, the deeper the block", where, "slope of that correlation, per block", slopes, -1),
    ]


def _between(comparison: Comparison, models: Sequence[Findings], others: Sequence[Findings]) -> list[Statement]:
    by_seed = {one.seed: comparison.of(one) for one in others}
    pairs = [(comparison.of(one), by_seed.get(one.seed)) for one in models]
    return _statement(
        comparison.claim,
        f"{models[0].series} against {others[0].series}",
        f"{comparison.measure}, {comparison.scheme} minus {comparison.other}",
        [a - b for a, b in pairs if a is not None and b is not None],
        comparison.sign,
    )


def _statement(claim: str, where: str, measure: str, values: Sequence[float], sign: int) -> list[Statement]:
    if not values:
        return []
    mean, low, high = student_interval(values)
    if low is None or high is None:
        verdict = "one seed: no interval"
    elif low == high:
        verdict = "the same in every seed: no interval"
    elif low <= 0 <= high:
        verdict = "not shown"
    else:
        verdict = "holds" if mean * sign > 0 else "the opposite"
    expected = "below 0" if sign < 0 else "above 0"
    return [Statement(claim, where, measure, expected, Estimate(mean, low, high), len(values), verdict)]


def _at_last(name: str, *, size: bool = False) -> Measure:
    def read(found: Findings) -> float | None:
        value = None if found.last is None else getattr(found.last.statistics, name)
        return value if value is None or not size else abs(value)

    return read


def _accuracy(found: Findings) -> float | None:
    return found.accuracy


_COMPARISONS = (
    Comparison(
        "Layer-wise positions without the input's do harm once the class token is gone",
        *("lape_gap", "lape", "accuracy", _accuracy, -1),
    ),
    Comparison(
        "A position at the Last LN does harm where blocks receive none",
        *("gap_last", "gap", "accuracy", _accuracy, -1),
    ),
    Comparison(
        "A position at the Last LN helps where blocks receive theirs",
        *("mpvg", "pvg", "accuracy", _accuracy, 1),
    ),
    Comparison(
        "The Last LN turns averaged tokens further than a class token",
        *("pvg", "pvg_cls", "cosine before and after the Last LN", _at_last("cosine"), -1),
    ),
    Comparison(
        "A position at the Last LN takes variance out of its bias",
        *("mpvg", "pvg", "var(beta)", _at_last("var_beta"), -1),
    ),
    Comparison(
        "... and out of the whole offset, bias and position (our test)",
        *("mpvg", "pvg", "var(beta + c)", _at_last("var_beta_and_constant"), -1),
    ),
    Comparison(
        "x_L goes along with LN'(pos_0) less where blocks receive none",
        *("gap_last", "mpvg", "|correlation| with x_L", _at_last("correlation_before", size=True), -1),
    ),
    Comparison(
        "LN(x_L) goes along with LN'(pos_0) less where blocks receive none",
        *("gap_last", "mpvg", "|correlation| with LN(x_L)", _at_last("correlation_after", size=True), -1),
    ),
)
