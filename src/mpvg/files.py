"""Files that are either whole or not there."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a share of it or a file that is full


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file in one step; a reader never sees half of it.

    Args:
        path: The file. Its folder must exist; a file already there is replaced.
        content: What it is to hold, of which text becomes UTF-8; or what writes it, to a path that it is given.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")  # not tempfile: its files are readable by their owner only
    try:
        if callable(content):
            content(draft)
        else:
            draft.write_bytes(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
        os.replace(draft, path)
    except OSError as error:  # of a full disk, Python does not say where
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        draft.unlink(missing_ok=True)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows, all of the same columns, as the text of a CSV file.

    Args:
        rows: At least one; the columns stand in its order.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
