"""Labelled time series from .ts or .csv files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from mpvg.data.holdout import checked
from mpvg.data.sequences.csv_rows import read_csv
from mpvg.data.sequences.embedded import shipped
from mpvg.data.sequences.files import refusal
from mpvg.data.sequences.rows import Rows, in_splits
from mpvg.data.sequences.splits import SequenceData, Series
from mpvg.data.sequences.ts import read_ts
from mpvg.data.sequences.values import without_missing
from mpvg.errors import UserError

_SUFFIXES = (".ts", ".csv")


def load_series(sources: Sequence[str], *, impute: bool = False) -> SequenceData:
    """Load labelled time series into memory.

    Args:
        sources: Two files, train and test, or three: train, val and test. They are .ts files of the UCR and UEA
            archives, or .csv files with one univariate series a row: the label, then the values. Or the name of one
            set that comes with sktime, such as "ItalyPowerDemand".
        impute: Replace missing values by linear interpolation instead of refusing them.

    Returns:
        Series (T, C) as float32 and their labels; lengths may differ between series.

    Raises:
        UserError: A file is missing or in another format, holds a row that is no such series, has missing values while
            `impute` is False, or does not fit the training file.
    """
    if isinstance(sources, str):
        raise ValueError(f"sources is the string {sources!r}: give a list of files, or of one name.")
    files, note = _files(sources)
    rows: dict[str, Rows] = {}
    name = ""
    for split, path in files.items():
        rows[split], found = _read(path)
        name = name or found
        kept, told = without_missing(rows[split], list(cast(tuple[Series, ...], rows[split].items)), impute=impute)
        rows[split] = replace(rows[split], items=kept)
        note += rows[split].note + told
    channels = _one_number_of_channels(rows)
    classes, splits = in_splits(rows)
    return checked(
        SequenceData(
            name=name or _stem(files["train"]),
            note=note,
            classes=classes,
            train=splits["train"],
            val=splits.get("val"),
            test=splits["test"],
            channels=channels,
        )
    )


def _files(sources: Sequence[str]) -> tuple[dict[str, Path], str]:
    """Return the file of every split, and the beginning of the note."""
    if len(sources) == 1 and not (os.path.exists(sources[0]) or sources[0].lower().endswith(_SUFFIXES)):
        return shipped(sources[0]), f"Time series {sources[0]} of the UCR and UEA archives, as it comes with sktime"
    if len(sources) not in (2, 3):
        given = " ".join(sources)[:200] or "nothing"
        raise UserError(
            f"--data {given}: one source is a name, two are the files of train and test, three those of train, val and "
            f"test: give one of these instead of {len(sources)}{' file' * (len(sources) == 1)}."
        )
    splits = ("train", "test") if len(sources) == 2 else ("train", "val", "test")
    files = {split: Path(os.path.expanduser(source)) for split, source in zip(splits, sources, strict=True)}
    return files, f"Time series from {', '.join(path.name for path in files.values())}"


def _read(path: Path) -> tuple[Rows, str]:
    if path.suffix.lower() == ".ts":
        return read_ts(path)
    if path.suffix.lower() == ".csv" or path.is_dir():  # a folder is told as one
        return read_csv(path), ""
    what = "this file is neither .ts nor .csv" if path.exists() else "no such file"
    raise refusal(path, what, "give .ts or .csv files")


def _one_number_of_channels(rows: dict[str, Rows]) -> int:
    first = rows["train"]
    channels = {split: cast(tuple[Series, ...], part.items)[0].shape[1] for split, part in rows.items()}
    for split, part in rows.items():
        if channels[split] != channels["train"]:
            what = f"number of dimensions is {channels[split]}, not {channels['train']} as in {first.path.name}"
            raise refusal(part.path, what, "give files of one set")
    return channels["train"]


def _stem(path: Path) -> str:
    return re.sub(r"[-_. ]?train$", "", path.stem, flags=re.IGNORECASE) or path.resolve().parent.name or path.stem
