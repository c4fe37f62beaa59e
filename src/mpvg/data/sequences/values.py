"""Numbers of series as they are written, and values that are missing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpvg.data.sequences.files import shown
from mpvg.data.sequences.rows import Rows
from mpvg.data.sequences.splits import Series

MISSING = frozenset({"", "?", "nan"})


def parsed(text: str) -> Series:
    """Return the values of "1,2.5,?", NaN where one is missing.

    Args:
        text: Numbers, separated by commas; "?", "NaN" and nothing mean a missing value.

    Returns:
        Values (T,).

    Raises:
        ValueError: A value is infinite or no number; the message says which.
    """
    cells = text.split(",")
    try:
        if "_" in text:  # Python would read 1_000 as a number
            raise ValueError
        numbers = list(map(float, cells))
    except ValueError:
        numbers = [_number(cell, step) for step, cell in enumerate(cells, 1)]
    with np.errstate(over="ignore"):
        values = np.array(numbers).astype(np.float32)
    infinite = np.isinf(values)
    if infinite.any():
        step = int(infinite.argmax())
        raise ValueError(f"value {shown(cells[step].strip())} of step {step + 1} is infinite, or too large for float32")
    return values


def is_number(cell: str) -> bool:
    """Say whether a cell holds a number, be it infinite."""
    try:
        return "_" not in cell and not np.isnan(float(cell))
    except ValueError:
        return False


def _number(cell: str, step: int) -> float:
    cell = cell.strip()
    if cell.casefold() in MISSING:
        return float("nan")
    if not is_number(cell):
        raise ValueError(f"value {shown(cell)} of step {step} is no number")
    return float(cell)


def without_missing(rows: Rows, series: list[Series], *, impute: bool) -> tuple[tuple[Series, ...], str]:
    """Return series without missing values, and what is to be told of them: "; ..." or nothing.

    Args:
        rows: Where the series are from.
        series: Values (T, C) of each row, NaN where one is missing.
        impute: Replace missing values by the line between the nearest values of the channel, before the first and
            after the last by these.

    Raises:
        UserError: Values are missing and not to be imputed, or a channel of a series has none.
    """
    gaps = {row: np.isnan(values) for row, values in enumerate(series) if np.isnan(values).any()}
    if not gaps:
        return tuple(series), ""
    first = next(iter(gaps))
    if not impute:
        step, channel = (int(index) + 1 for index in np.argwhere(gaps[first])[0])
        many = "1 row has" if len(gaps) == 1 else f"{len(gaps)} rows have"
        raise rows.refusal(
            first,
            f"the value of step {step} in channel {channel} is missing; {many} missing values",
            "fill them in, or impute them (--impute)",
        )
    filled = list(series)
    for row, gap in gaps.items():
        if gap.all(axis=0).any():
            channel = int(gap.all(axis=0).argmax()) + 1
            raise rows.refusal(row, f"channel {channel} has no value at all", "remove the row or the channel")
        filled[row] = _imputed(series[row], gap)
    values = sum(int(gap.sum()) for gap in gaps.values())
    return tuple(filled), f"; {values} missing values in {len(gaps)} rows of {rows.path.name} were imputed"


def _imputed(values: Series, gap: npt.NDArray[np.bool_]) -> Series:
    filled, steps = values.copy(), np.arange(len(values))
    for channel in np.flatnonzero(gap.any(axis=0)):
        missing = gap[:, channel]
        filled[missing, channel] = np.interp(steps[missing], steps[~missing], values[~missing, channel])
    return filled
