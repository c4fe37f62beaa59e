"""Files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a text file in one step; a reader never sees half of it.

    Args:
        path: The file. Its folder must exist; a file already there is replaced.
        text: What it is to hold.

    Raises:
        OSError: The file cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")  # not tempfile: its files are readable by their owner only
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
