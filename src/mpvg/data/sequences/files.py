"""Lines of text files, and how what is wrong with a file or one of its rows is told."""

from __future__ import annotations

import codecs
from pathlib import Path

from mpvg.errors import UserError

_SHOWN = 40  # characters of a value in a message


def refusal(path: Path | str, what: str, remedy: str, *, row: int | None = None, line: int | None = None) -> UserError:
    """Return the error for a file or a row of it.

    Args:
        path: The file.
        what: What is wrong.
        remedy: What to do about it.
        row: Number of the row of data, from 1.
        line: Number of the line in the file, from 1; it is told where it differs from the row's.
    """
    where = f"--data {str(path)[:200]}"
    if row is not None:
        where += f", row {row}"
        what += f" (line {line})" if line not in (None, row) else ""
    elif line is not None:
        where += f", line {line}"
    return UserError(f"{where}: {what}: {remedy}.")


def shown(value: str) -> str:
    """Return a value in quotes for a message, cut where it is long."""
    return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")


def read_lines(path: Path, *, comments: bytes = b"") -> list[str]:
    """Return the lines of a UTF-8 file, with or without a byte order mark, ended by LF or CRLF.

    Args:
        path: The file.
        comments: Characters with which a comment line begins; comments need not be UTF-8.

    Raises:
        UserError: The file is missing, empty, cannot be read, or is not UTF-8.
    """
    try:
        if path.is_dir():
            raise refusal(path, "this is a folder", "name a file")
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise refusal(path, "no such file", "check the path") from error
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise refusal(path, f"cannot be read ({error})", "check the path and its rights") from error
    text = _decoded(raw, path, comments)
    if not text.strip():
        raise refusal(path, "the file is empty", "give one with rows")
    return [line.removesuffix("\r") for line in text.split("\n")]


def _decoded(raw: bytes, path: Path, comments: bytes) -> str:
    remedy = "save the file as UTF-8"
    if b"\0" in raw:
        at = raw[: raw.index(b"\0")].count(b"\n") + 1
        raise refusal(path, "a zero byte, as in UTF-16 or a binary file", remedy, line=at)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    lines = raw.removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.lstrip()[:1] in comments:
            continue
        try:
            line.decode()
        except UnicodeDecodeError as error:
            what = f"byte 0x{line[error.start]:02x} is not UTF-8"
            raise refusal(path, what, remedy, line=number) from error
    return b"\n".join(lines).decode(errors="replace")
