"""Univariate time series as rows of a .csv file: a label, then the values."""

from __future__ import annotations

import csv
from pathlib import Path

from mpvg.data.sequences.files import read_lines, refusal, shown
from mpvg.data.sequences.rows import Rows
from mpvg.data.sequences.splits import Series
from mpvg.data.sequences.values import MISSING, is_number, parsed

_LABEL_WORDS = ("label", "class", "categor", "target")


def read_csv(path: Path) -> Rows:
    """Read a .csv file of series that have a class each.

    Args:
        path: The file; a first row with words and no number after the label is a header. Rows may differ in length.

    Returns:
        Series (T, 1) with NaN where a value is missing, with their labels as written.

    Raises:
        UserError: A row is no such series.
    """
    series: list[Series] = []
    labels: list[str] = []
    numbers: list[int] = []
    header = ""
    for line, text in enumerate(read_lines(path), 1):
        if not text.strip():
            continue
        row = len(labels) + 1
        label, comma, values = _cells(path, text, row=row, line=line)
        if not labels and not header and _is_header(path, label, values, line):
            header = text
            continue
        if not label:
            raise refusal(path, "no label in the first cell", "write one", row=row, line=line)
        if not comma:
            remedy = "write the label, then the values, separated by commas"
            raise refusal(path, f"{shown(label)} has no values, so its length is zero", remedy, row=row, line=line)
        try:
            series.append(parsed(values)[:, None])
        except ValueError as error:
            raise refusal(path, str(error), "correct the row, or remove it", row=row, line=line) from error
        labels.append(label)
        numbers.append(line)
    if not labels:
        raise refusal(path, f"no row but the header {shown(header)}", "give a file with series")
    return Rows(path, tuple(series), tuple(labels), tuple(numbers), header=header)


def _cells(path: Path, text: str, *, row: int, line: int) -> tuple[str, str, str]:
    """Return the label, a comma if there is one, and the values; quotes around cells are taken off."""
    if '"' not in text:
        label, comma, values = text.partition(",")
        return label.strip(), comma, values
    try:
        label, *cells = next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise refusal(path, f"its quotes are wrong ({error})", "correct the row", row=row, line=line) from error
    return label.strip(), "," * bool(cells), ",".join(cells)


def _is_header(path: Path, label: str, values: str, line: int) -> bool:
    cells = [cell.strip() for cell in values.split(",")]
    counted = [str(number) for number in range(len(cells) + 1)]
    is_named = label.casefold() == "y" or any(word in label.casefold() for word in _LABEL_WORDS)
    if is_named and len(cells) > 1 and cells in (counted[:-1], counted[1:]):
        what = f"{shown(label)} with the values {cells[0]}, {cells[1]}, ... looks like a header of column numbers"
        raise refusal(path, what, "remove that row, or give the columns names such as t1", row=1, line=line)
    if is_number(label) or any(is_number(cell) for cell in cells):
        return False
    return any(cell.casefold() not in MISSING for cell in cells)
