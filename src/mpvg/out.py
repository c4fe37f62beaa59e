"""The folder that a command writes to: held by one process, and by one configuration."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpvg.errors import UserError
from mpvg.files import NO_ROOM, write_atomically


def source_name(source: str) -> str:
    """Return a source of images as a part of a folder's name."""
    return re.sub(r"[^\w.]+", "-", Path(source).stem)


_held: set[int] = set()


def _let_go() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)  # or processes that load images would hold on when their parent is killed


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
        handle = _lock(path)
    except BlockingIOError as error:
        raise UserError(f"--out {path} is in use by another mpvg process: wait, or name another folder.") from error
    except OSError as error:
        raise UserError(f"--out {path} cannot be used ({error}): name another folder.") from error
    _held.add(handle)
    try:
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


def _lock(path: Path) -> int:
    """Return the handle that holds a folder: its own, or that of a file in it, as some network file systems lock."""
    refused: OSError | None = None
    for lockable, flags in ((path, os.O_RDONLY), (path / ".lock", os.O_RDWR | os.O_CREAT)):
        handle = os.open(lockable, flags)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise
            refused = error
        else:
            return handle
    assert refused is not None
    raise refused


class OutFolder:
    """An output folder with the configuration of what is in it.

    Args:
        path: The folder.
        configuration: JSON-able; where it is printed, settings go by its keys.
        results: Patterns of the files that belong to a configuration.
        may_change: Options that are not of the configuration, to be named where another one is refused.
    """

    def __init__(
        self,
        path: Path,
        configuration: Mapping[str, Any],
        *,
        results: tuple[str, ...],
        may_change: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.configuration = configuration
        self.results = results
        self.may_change = may_change
        self.file = path / "config.json"

    def changes(self) -> list[str]:
        """Return in words how the configuration of the results in the folder differs from this one; writes nothing.

        Raises:
            UserError: The folder holds something else, or cannot be read.
        """
        try:
            if not self.file.exists():
                self._refuse_other_files()
            if not self._found():
                return []
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--out {self.path} cannot be used ({error}): name another folder.") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            return [f"its config.json is damaged, {error}"]
        if not isinstance(found, dict) or found.keys() != self.configuration.keys():
            return ["it holds the results of something else"]
        return [
            f"{key} {found.get(key)!r} there, {value!r} here"
            for key, value in self.configuration.items()
            if found.get(key) != value and key != "data"  # the same images under another path are the same data
        ]

    def refuse_another_command(self) -> None:
        """Raise UserError where the folder holds files that are not this command's results."""
        try:
            if not self.file.exists():
                self._refuse_other_files()
                return
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--out {self.path} cannot be used ({error}): name another folder.") from error
        except (json.JSONDecodeError, UnicodeDecodeError):
            found = None
        if not isinstance(found, dict) or found.keys() != self.configuration.keys():
            raise UserError(f"--out {self.path} holds the results of another command: name another folder.")

    def replace_all(self) -> None:
        """Remove all results in the folder, and note this configuration."""
        for file in self._found():
            file.unlink()
        write_atomically(self.file, json.dumps(self.configuration, indent=2))

    def refuse_changes(self) -> None:
        """Raise UserError where the folder holds results of another configuration."""
        changed = self.changes()
        if changed:
            free = f" These may change: {', '.join(self.may_change)}." if self.may_change else ""
            raise UserError(
                f"--out {self.path} is of another configuration ({'; '.join(changed)}): name another folder, or begin "
                f"anew with --overwrite.{free}"
            )

    def begin(self, *, overwrite: bool) -> None:
        """Make the folder ready for this configuration.

        Args:
            overwrite: Remove the results of another configuration.

        Raises:
            UserError: The folder holds something else, or cannot be written.
        """
        if not overwrite:
            self.refuse_changes()
        try:
            for file in (*self._drafts(), *(self._found() if self.changes() else ())):
                file.unlink()
            write_atomically(self.file, json.dumps(self.configuration, indent=2))
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            raise UserError(f"--out {self.path} cannot be used ({error}): name another folder.") from error

    def _refuse_other_files(self) -> None:
        names = os.listdir(self.path) if self.path.exists() else []
        if any(name[0] != "." for name in names):  # a process that was killed may leave .config.json.123
            raise UserError(f"--out {self.path} holds other files and no results: name a new or empty folder.")

    def _found(self) -> list[Path]:
        return [file for pattern in self.results for file in self.path.glob(pattern)]

    def _drafts(self) -> list[Path]:
        """Return what processes that were killed had not written to its end; the caller holds the folder."""
        return [file for pattern in (self.file.name, *self.results) for file in self.path.glob(f".{pattern}.*")]
