"""The output folder of a comparison: one file a finished run, so that nothing computed is lost."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpvg.compare.settings import Settings
from mpvg.data.sources import ImageData
from mpvg.errors import UserError
from mpvg.files import write_atomically


def fingerprint(data: ImageData) -> str:
    """Return a short hash of all images and labels."""
    digest = hashlib.sha256()
    for split in (data.train, data.val, data.test):
        if split is not None:
            digest.update(repr(split.images.shape).encode())
            digest.update(split.images.tobytes())
            digest.update(split.labels.tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a folder, made where it is missing, against a second process; the system lets go even if this one is killed.

    Args:
        path: The folder.

    Raises:
        UserError: Another process holds it, or it cannot be used.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"--out {path} cannot be used ({error}): name another folder.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise UserError(f"--out {path} is in use by another mpvg compare: wait, or name another folder.") from error
    try:
        yield
    finally:
        os.close(handle)


class RunFolder:
    """A folder of runs of one configuration.

    Args:
        path: The folder.
        settings: The configuration.
        data: The images.
        overwrite: Begin anew where the folder holds a comparison of another configuration.

    Raises:
        UserError: The folder holds something else, or cannot be written.
    """

    def __init__(self, path: Path, settings: Settings, data: ImageData, *, overwrite: bool = False) -> None:
        self.path = path
        wanted = {**settings.as_dict(), "data_hash": fingerprint(data)}
        config = path / "config.json"
        try:
            if config.exists():
                changed = _changes(json.loads(config.read_text(encoding="utf-8")), wanted)
                if changed and not overwrite:
                    raise UserError(
                        f"--out {path} is of another configuration ({'; '.join(changed)}): name another folder, or "
                        "begin anew with --overwrite."
                    )
                for run in (path / "runs").glob("*.json") if changed else ():
                    run.unlink()
            elif os.listdir(path):
                raise UserError(f"--out {path} holds other files and no comparison: name a new or empty folder.")
            (path / "runs").mkdir(exist_ok=True)
            write_atomically(config, json.dumps(wanted, indent=2))
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"--out {path} cannot be used ({error}): name another folder.") from error

    def run_file(self, scheme: str, seed: int) -> Path:
        return self.path / "runs" / f"{re.sub(r'[^a-z0-9_]+', '-', scheme)}-seed{seed}.json"

    def finished(self, scheme: str, seed: int) -> dict[str, Any] | None:
        """Return a run's record, or None where it has not finished or its file is damaged."""
        try:
            record = json.loads(self.run_file(scheme, seed).read_text(encoding="utf-8"))
            return record if (record["scheme"], record["seed"]) == (scheme, seed) and record["curve"]["step"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _changes(found: Any, wanted: dict[str, Any]) -> list[str]:
    if not isinstance(found, dict):
        return ["its config.json is damaged"]
    return [
        f"{key} {found.get(key)!r} there, {value!r} here"
        for key, value in wanted.items()
        if found.get(key) != value and key != "data"  # the same images under another path are the same data
    ]
