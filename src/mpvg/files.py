"""Files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file in one step; a reader never sees half of it.

    Args:
        path: The file. Its folder must exist; a file already there is replaced.
        content: What it is to hold; text becomes UTF-8.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")  # not tempfile: its files are readable by their owner only
    try:
        draft.write_bytes(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
        os.replace(draft, path)
    except OSError as error:  # of a full disk, Python does not say where
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        draft.unlink(missing_ok=True)
