"""The paper's statements: which are tested, on what number, and with what verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from mpvg.analysis.measures import LastNormStatistics
from mpvg.analysis.results import BlockFindings, Estimate, Findings, LastNormFindings
from mpvg.analysis.statements import Statement, statements
from mpvg.stats import student_interval


def model(
    scheme: str,
    seed: int,
    correlations: Sequence[float | None] = (),
    *,
    accuracy: float | None = None,
    model: str = "mpvg_vit_nano",
    **measures: float,
) -> Findings:
    table, undefined = torch.zeros(2, 2), Estimate(None)
    blocks = tuple(
        BlockFindings(i, str(i), (1, 2), table, table, Estimate(value), undefined, undefined, undefined)
        for i, value in enumerate(correlations)
    )
    series = scheme if model == "mpvg_vit_nano" else f"{scheme} {model}"
    values: dict[str, Any] = {field.name: measures.get(field.name) for field in fields(LastNormStatistics)}
    last = LastNormFindings((1, 2), table, table, None, None, None, None, LastNormStatistics(**values), {})
    return Findings(
        name=scheme, label=f"{scheme}, seed {seed}", series=series, model=model, scheme=scheme, folded=False,
        parameters=1, images=1, initial=None, initial_grid=None, blocks=blocks, last=last, norms=None, causal=None,
        notes=(), seed=seed, accuracy=accuracy,
    )  # fmt: skip


def one(findings: Sequence[Findings], claim: str) -> Statement:
    (found,) = [statement for statement in statements(findings) if claim in statement.claim]
    return found


def test_level_and_slope_of_the_correlation_are_taken_over_seeds() -> None:
    seeds = [
        model("pvg", 0, [None, -0.1, -0.3]),
        model("pvg", 1, [None, -0.2, -0.4]),
        model("pvg", 2, [None, -0.3, -0.5]),
    ]
    level = one(seeds, "counterbalance")
    assert level.estimate == pytest.approx(tuple(student_interval([-0.2, -0.3, -0.4])))
    assert (level.where, level.expected, level.seeds, level.verdict) == ("pvg", "below 0", 3, "holds")
    deeper = [model("pvg", seed, [-0.1, -0.2 + 0.01 * seed, -0.3 + 0.02 * seed]) for seed in range(3)]
    slope = one(deeper, "deeper")
    assert slope.estimate.value == pytest.approx(-0.09)
    assert slope.verdict == "holds"


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ([0.72, 0.751], "holds"),
        ([0.5, 0.531], "the opposite"),
        ([0.55, 0.75], "not shown"),
        ([0.7], "one seed: no interval"),
    ],
)
def test_a_comparison_pairs_seeds(accuracies: list[float], verdict: str) -> None:
    findings = [model("mpvg", seed, accuracy=accuracy) for seed, accuracy in enumerate(accuracies)]
    findings += [model("pvg", seed, accuracy=0.6 + 0.03 * seed) for seed in reversed(range(2))]
    found = one(findings, "helps where blocks receive theirs")
    pairs = [accuracy - 0.6 - 0.03 * seed for seed, accuracy in enumerate(accuracies)]
    assert found.estimate == pytest.approx(tuple(student_interval(pairs)))
    assert (found.where, found.expected, found.seeds) == ("mpvg against pvg", "above 0", len(accuracies))
    assert found.verdict == verdict


def test_correlations_at_the_last_norm_are_compared_by_size() -> None:
    findings = [
        *[model("gap_last", seed, correlation_before=-0.1 - 0.01 * seed) for seed in range(3)],
        *[model("mpvg", seed, correlation_before=0.4) for seed in range(3)],
    ]
    (found,) = statements(findings)
    assert found.claim.startswith("x_L goes along")
    assert found.estimate.value == pytest.approx(-0.29)
    assert found.verdict == "holds"


def test_what_these_models_cannot_say_is_left_out() -> None:
    assert statements([model("gap", 0, accuracy=0.5), model("gap", 1, accuracy=0.6)]) == []
    other = [model("mpvg", 0, accuracy=0.5), model("pvg", 0, accuracy=0.5, model="mpvg_vit_lite_7_4_32")]
    assert statements(other) == []
    assert statements([model("mpvg", 0, accuracy=0.5), model("pvg", 1, accuracy=0.5)]) == []


def test_copies_give_no_interval() -> None:
    found = one([model("pvg", 0, [-0.1, -0.2, -0.3]), model("pvg", 1, [-0.1, -0.2, -0.3])], "counterbalance")
    assert found.verdict == "the same in every seed: no interval"


def test_layer_attention_is_no_block() -> None:
    findings = model("pvg", 0, [-0.1, -0.2, -0.3, 0.9])
    blocks = (*findings.blocks[:3], replace(findings.blocks[3], grid=None))
    assert one([replace(findings, blocks=blocks)], "counterbalance").estimate.value == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("scheme", "other", "measure", "expected"),
    [
        ("lape_gap", "lape", "accuracy", "below 0"),
        ("gap_last", "gap", "accuracy", "below 0"),
        ("mpvg", "pvg", "accuracy", "above 0"),
        ("pvg", "pvg_cls", "cosine", "below 0"),
        ("mpvg", "pvg", "var_beta", "below 0"),
        ("mpvg", "pvg", "var_beta_and_constant", "below 0"),
        ("gap_last", "mpvg", "correlation_before", "below 0"),
        ("gap_last", "mpvg", "correlation_after", "below 0"),
    ],
)
def test_what_each_comparison_reads_and_expects(scheme: str, other: str, measure: str, expected: str) -> None:
    high: dict[str, Any] = {measure: 0.7}
    low: dict[str, Any] = {measure: 0.4}
    (found,) = statements([model(scheme, 0, **high), model(other, 0, **low)])
    assert found.estimate.value == pytest.approx(0.3)
    assert (found.where, found.expected) == (f"{scheme} against {other}", expected)
