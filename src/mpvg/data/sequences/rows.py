"""Rows of a file as they were read, and the splits that several files make."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpvg.data.sequences.files import refusal, shown
from mpvg.data.sequences.splits import Items, Sequences
from mpvg.errors import UserError


@dataclass(frozen=True)
class Rows:
    """What a file holds.

    Args:
        path: The file.
        items: One a row.
        labels: One a row, as written.
        lines: Number of each row's line in the file, from 1.
        header: The line that was taken for a header, where a header is no part of the format; "" for none.
    """

    path: Path
    items: Items
    labels: tuple[str, ...]
    lines: tuple[int, ...]
    header: str = ""

    def refusal(self, row: int, what: str, remedy: str) -> UserError:
        """Return the error for a row, which is counted from 0 here."""
        return refusal(self.path, what, remedy, row=row + 1, line=self.lines[row])

    @property
    def note(self) -> str:
        """What is to be told of the file: "; ..." or nothing."""
        return f"; the first row of {self.path.name} was taken for a header ({shown(self.header)})" * bool(self.header)


def in_splits(files: Mapping[str, Rows]) -> tuple[tuple[str, ...], dict[str, Sequences]]:
    """Return the names of the classes, which are those of train, and every split with labels that count them.

    Args:
        files: What was read, by split; one is "train".

    Raises:
        UserError: Train has fewer than two classes, or another split has a label that train lacks.
    """
    train = files["train"]
    classes = sorted_names(train.labels)
    if len(classes) < 2:
        raise refusal(train.path, f"all rows have the label {shown(classes[0])}", "give two classes or more")
    number = {name: label for label, name in enumerate(classes)}
    for rows in files.values():
        for row, label in enumerate(rows.labels):
            if label not in number:
                known = ", ".join(map(shown, classes[:10])) + ", ..." * (len(classes) > 10)
                raise rows.refusal(
                    row,
                    f"label {shown(label)} is not in {train.path.name}, which has {known}",
                    "correct it or add such rows to train",
                )
    splits = {
        split: Sequences(rows.items, np.array([number[label] for label in rows.labels], np.int64))
        for split, rows in files.items()
    }
    return classes, splits


def sorted_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the different labels in order: by number where all are numbers, otherwise by name."""
    names = sorted(set(labels))
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return tuple(names)
    if not all(math.isfinite(number) for number in numbers.values()):
        return tuple(names)
    return tuple(sorted(names, key=lambda name: numbers[name]))
