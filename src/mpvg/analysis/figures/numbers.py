"""Numbers in words, for figures and tables; what is undefined says so."""

from __future__ import annotations

from textwrap import wrap

from mpvg.analysis.results import Estimate

__all__ = ["estimate_text", "interval_text", "number", "tick", "wrapped"]


def number(value: float | None, digits: int | None = 2) -> str:
    """Write a number with a true minus sign, or that it is undefined.

    Args:
        value: The number; None where it is undefined.
        digits: How many follow the point; None for four digits wherever the point is.

    Returns:
        Text such as "−0.95", without a sign where it rounds to zero.
    """
    if value is None:
        return "undefined"
    text = f"{value:.4g}" if digits is None else f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def interval_text(estimate: Estimate, digits: int = 2) -> str:
    """Write the band of a measure, such as "−0.97 to −0.93"; empty where it has none."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"


def estimate_text(estimate: Estimate, digits: int = 2) -> str:
    """Write a measure and, in parentheses, its band where it has one."""
    band = interval_text(estimate, digits)
    return number(estimate.value, digits) + (f" ({band})" if band else "")


def wrapped(text: str, width: int) -> str:
    """Break a name into at most two lines of so many characters; the rest is cut off."""
    return "\n".join(wrap(text, width, max_lines=2, placeholder="…"))


def tick(value: float, _position: float | None = None) -> str:
    """Write the number at a tick of an axis, with a true minus sign."""
    return f"{round(value, 9):g}".replace("-", "\N{MINUS SIGN}")
