"""Intervals and verdicts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpvg.stats import Interval, paired_difference, student_interval, verdict

scipy_stats = pytest.importorskip("scipy.stats")
numbers = st.lists(st.floats(0, 1), min_size=2, max_size=20).filter(lambda values: max(values) - min(values) > 1e-6)


@given(numbers)
def test_interval_is_students(values: list[float]) -> None:
    theirs = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    ours = student_interval(values)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-12)


def test_known_interval() -> None:
    # t_{2, 0.975} = 4.3027, s = 0.01, n = 3
    assert student_interval([0.90, 0.91, 0.92]) == pytest.approx((0.91, 0.885159, 0.934841), abs=1e-6)
    assert student_interval([0.9]) == (0.9, None, None)
    with pytest.raises(ValueError, match="at least one"):
        student_interval([])


def test_pairing_removes_what_seeds_share() -> None:
    reference, better = [0.80, 0.85, 0.90], [0.82, 0.87, 0.92]
    assert paired_difference(better, reference) == pytest.approx((0.02, 0.02, 0.02))
    spread = student_interval(better)
    assert spread.low is not None
    assert spread.low < 0.80


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.03, "higher than default"),
        (-0.03, -0.01, "lower than default"),
        (-0.01, 0.03, "no difference shown"),
        (0.0, 0.03, "no difference shown"),
        (None, None, "one seed: no interval"),
        (0.02, 0.02, "the same in every seed: no interval"),
        (0.0, 0.0, "no difference shown"),
    ],
)
def test_verdicts(low: float | None, high: float | None, words: str) -> None:
    assert verdict(Interval(0.0, low, high), "default") == words
