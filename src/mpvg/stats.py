"""Intervals over seeds and over images."""

from __future__ import annotations

from collections.abc import Sequence
from math import atanh, sqrt, tanh
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and its two-sided interval; low and high are None where one value allows none."""

    mean: float
    low: float | None
    high: float | None


def student_interval(values: Sequence[float]) -> Interval:
    """Return the mean and its 95 % Student-t interval: mean +- t_{n-1} s / sqrt(n).

    Args:
        values: One number a seed.

    Returns:
        The interval; without bounds for a single value.

    Raises:
        ValueError: No values.
    """
    if not values:
        raise ValueError("values=[]: an interval needs at least one value.")
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None)
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(value: float, replicates: Sequence[float], *, of_correlations: bool = False) -> Interval:
    """Return a value and its 95 % normal interval, with the standard deviation of its bootstrap replicates.

    Args:
        value: The measure itself.
        replicates: The same measure on two or more resamples.
        of_correlations: Whether to reckon on Fisher's scale, atanh, which keeps the interval within -1 and 1.

    Returns:
        The interval, around `value`.
    """

    def scaled(number: float) -> float:
        return atanh(max(-1 + 1e-12, min(1 - 1e-12, number))) if of_correlations else number

    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * stdev(map(scaled, replicates))
    low, high = scaled(value) - half, scaled(value) + half
    return Interval(value, tanh(low), tanh(high)) if of_correlations else Interval(value, low, high)


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Interval:
    """Return the interval of values - reference, paired by position (the seed)."""
    return student_interval([value - other for value, other in zip(values, reference, strict=True)])


def verdict(difference: Interval, reference: str) -> str:
    """Say in plain words what a difference to `reference` shows."""
    if difference.low is None or difference.high is None:
        return "one seed: no interval"
    if difference.low == difference.high != 0:
        return "the same in every seed: no interval"  # no spread to judge by, as with few test images
    if difference.low > 0:
        return f"higher than {reference}"
    if difference.high < 0:
        return f"lower than {reference}"
    return "no difference shown"
