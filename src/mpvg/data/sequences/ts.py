"""Time series in the .ts format of the UCR and UEA archives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpvg.data.sequences.files import read_lines, refusal, shown
from mpvg.data.sequences.rows import Rows
from mpvg.data.sequences.splits import Series
from mpvg.data.sequences.values import parsed

_COMMENTS = "#%"
_SWITCHES = ("timestamps", "missing", "univariate", "equallength")


@dataclass(frozen=True)
class _Header:
    name: str
    channels: int | None
    labels: Mapping[str, str]  # as listed, by what their spellings have in common
    length: int | None  # of every series; 0 where it is that of the first
    ends: int  # line of @data


def read_ts(path: Path) -> tuple[Rows, str]:
    """Read a .ts file of series that have a class each.

    Args:
        path: The file; its keys may be written in any case, and its comments begin with "#" or "%".

    Returns:
        Series (T, C) with NaN where a value is missing, with their labels as written; and the problem's name, which
        may be "".

    Raises:
        UserError: The file has timestamps, targets that are no classes, or a row that is no such series.
    """
    lines = read_lines(path, comments=_COMMENTS.encode())
    header = _header(path, lines)
    channels = header.channels
    series: list[Series] = []
    labels: list[str] = []
    numbers: list[int] = []
    for line, text in enumerate(lines[header.ends :], header.ends + 1):
        text = text.strip()
        if not text or text[0] in _COMMENTS:
            continue
        row = len(labels) + 1
        *dimensions, label = text.split(":")
        label = label.strip()
        if not dimensions or not label:
            raise refusal(path, "no label at the end", "write it after a last ':'", row=row, line=line)
        if header.labels and _key(label) not in header.labels:
            remedy = "correct it, or list it there"
            raise refusal(path, f"label {shown(label)} is not listed after @classLabel", remedy, row=row, line=line)
        label = header.labels.get(_key(label), label)
        channels = len(dimensions) if channels is None else channels
        if len(dimensions) != channels:
            where = "the header" if header.channels else "row 1"
            remedy = "write as many, separated by ':'"
            what = f"number of dimensions is {len(dimensions)}, not {channels} as in {where}"
            raise refusal(path, what, remedy, row=row, line=line)
        try:
            series.append(_series(dimensions))
        except ValueError as error:
            raise refusal(path, str(error), "correct the row, or remove it", row=row, line=line) from error
        length = header.length or len(series[0])
        if header.length is not None and len(series[-1]) != length:
            what = f"the series has {len(series[-1])} steps, and @equalLength is true for {length}"
            raise refusal(path, what, "correct the row, or write @equalLength false", row=row, line=line)
        labels.append(label)
        numbers.append(line)
    if not labels:
        raise refusal(path, "no row after @data", "give a file with series")
    return Rows(path, tuple(series), tuple(labels), tuple(numbers)), header.name


def _series(dimensions: list[str]) -> Series:
    channels = []
    for channel, text in enumerate(dimensions, 1):
        where = f"channel {channel}: " if len(dimensions) > 1 else ""
        if not text.strip():
            raise ValueError(f"{where}the series has no value, so its length is zero")
        try:
            channels.append(parsed(text))
        except ValueError as error:
            raise ValueError(f"{where}{error}") from error
    lengths = [len(values) for values in channels]
    if len(set(lengths)) > 1:
        other = next(index for index, length in enumerate(lengths) if length != lengths[0])
        raise ValueError(f"channel {other + 1} has {lengths[other]} values, but channel 1 has {lengths[0]}")
    return np.stack(channels, axis=1)


def _key(label: str) -> str:
    """Return what two spellings of a label have in common: case, and how a number is written."""
    try:
        return repr(float(label))
    except ValueError:
        return label.casefold()


def _header(path: Path, lines: list[str]) -> _Header:
    found: dict[str, tuple[str, int]] = {}
    for line, text in enumerate(lines, 1):
        text = text.strip()
        if not text or text[0] in _COMMENTS:
            continue
        if text[0] != "@":
            raise refusal(path, f"{shown(text)} comes before @data", "end the header with a line @data", line=line)
        key, *value = text[1:].split(None, 1)
        if key.casefold() == "data":
            return _checked(path, found, line)
        given = value[0] if value else ""
        before, _ = found.setdefault(key.casefold(), (given, line))
        if before != given and key.casefold() != "problemname":  # a name changes nothing
            what = f"@{key} is {shown(given)}, and {shown(before)} above"
            raise refusal(path, what, "remove one of them", line=line)
    raise refusal(path, "no line @data", "write it before the first series")


def _checked(path: Path, found: Mapping[str, tuple[str, int]], ends: int) -> _Header:
    switches = {key: _switch(path, key, *found[key]) for key in _SWITCHES if key in found}
    if switches.get("timestamps"):
        remedy = "resample the series to even steps, write values alone and @timeStamps false"
        raise refusal(path, "series with timestamps are not supported", remedy, line=found["timestamps"][1])
    if "targetlabel" in found:
        remedy = "give series that have classes, with @classLabel"
        raise refusal(path, "@targetLabel means regression", remedy, line=found["targetlabel"][1])
    remedy = "give series that have classes, with @classLabel true and their names"
    if "classlabel" not in found:
        raise refusal(path, "no line @classLabel", remedy)
    given, line = found["classlabel"]
    switch, *names = given.split() or [""]
    if not _switch(path, "classlabel", switch, line):
        raise refusal(path, "@classLabel false means series without classes", remedy, line=line)
    return _Header(
        name=found.get("problemname", ("", 0))[0],
        channels=_channels(path, found, switches.get("univariate")),
        labels={_key(name): name for name in reversed(names)},
        length=_length(path, found) if switches.get("equallength") else None,
        ends=ends,
    )


def _length(path: Path, found: Mapping[str, tuple[str, int]]) -> int:
    """Return the length that the header names; 0 where it names none."""
    value, line = found.get("serieslength", ("0", 0))
    if not value.isdecimal():
        raise refusal(path, f"@seriesLength is {shown(value)}", "write a whole number", line=line)
    return int(value)


def _switch(path: Path, key: str, value: str, line: int) -> bool:
    if value.casefold() not in ("true", "false"):
        raise refusal(path, f"@{key} is {shown(value)}", "write true or false", line=line)
    return value.casefold() == "true"


def _channels(path: Path, found: Mapping[str, tuple[str, int]], univariate: bool | None) -> int | None:
    key = "dimensions" if "dimensions" in found else "dimension"  # the archive has both spellings
    if key not in found:
        return 1 if univariate else None
    value, line = found[key]
    if not value.isdecimal() or int(value) == 0:
        raise refusal(path, f"@{key} is {shown(value)}", "write a whole number from 1", line=line)
    if univariate and int(value) != 1:
        raise refusal(path, f"@{key} is {value}, but @univariate is true", "correct one of them", line=line)
    return int(value)
