"""Output folders: one process, one configuration, and a disk that is full."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpvg.cli import main
from mpvg.errors import UserError
from mpvg.files import write_atomically
from mpvg.out import OutFolder, locked
from test_data import save


def test_a_folder_is_held_where_only_files_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network file systems, which every machine of a cluster sees."""
    flock = fcntl.flock

    def of_files(handle: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", of_files)
    test_a_folder_is_held_by_one(tmp_path)
    OutFolder(tmp_path / "new" / "out", {"a": 1}, results=()).begin(overwrite=False)


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with locked(out), pytest.raises(UserError, match="in use by another mpvg process"), locked(out):
        pass
    with locked(out):
        pass


def test_a_folder_is_of_one_configuration(tmp_path: Path) -> None:
    first, second = (OutFolder(tmp_path, {"lr": lr, "data": f"here{lr}"}, results=("*.ckpt",)) for lr in (1, 2))
    (tmp_path / ".config.json.123").touch()  # of a process that was killed
    assert first.changes() == []
    first.begin(overwrite=False)
    second.begin(overwrite=False)  # nothing is lost: there are no results yet
    first.begin(overwrite=False)
    for name in ("last.ckpt", "notes.txt"):
        (tmp_path / name).touch()
    assert first.changes() == []
    assert second.changes() == ["lr 1 there, 2 here"]
    with pytest.raises(UserError, match=r"lr 1 there, 2 here.*--overwrite"):
        second.begin(overwrite=False)
    first.begin(overwrite=True)
    assert (tmp_path / "last.ckpt").exists()  # the same configuration goes on
    second.begin(overwrite=True)
    assert not (tmp_path / "last.ckpt").exists()
    assert (tmp_path / "notes.txt").exists()
    assert second.changes() == []
    (tmp_path / "last.ckpt").touch()
    for damaged, message in (("{", "config.json is damaged"), ('{"model": 1}', "results of something else")):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(UserError, match=message):
            second.begin(overwrite=False)
        assert (tmp_path / "last.ckpt").exists()
    second.begin(overwrite=True)
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("command", ["compare", "fit"])
def test_folders_that_cannot_be_made(command: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    assert main([command, "--out", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert f"--out {tmp_path / 'file' / 'out'} cannot be used" in error
    assert error.count("\n") == 1


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    inode = path.stat().st_ino

    def fail(source: Path, content: bytes) -> int:
        source.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", fail)
        with pytest.raises(OSError, match="No space left on device") as caught:
            write_atomically(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["a.json"]
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_ino != inode  # another file in its place, so that no reader saw half of it


@pytest.mark.parametrize(
    ("command", "largest", "file"),
    [
        (["compare", "--epochs", "1", "--seeds", "1", "--batch-size", "8"], 1500, "/out/runs/"),
        (["fit", "--trainer.max_epochs", "1", "--trainer.logger", "false"], 500_000, "/out/best.ckpt"),
    ],
)
def test_a_file_too_large_for_the_disk(command: list[str], largest: int, file: str, tmp_path: Path) -> None:
    option = "--data" if command[0] == "compare" else "--data.source"
    words = [*command, option, save(tmp_path / "set.npz"), "--out", str(tmp_path / "out")]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mpvg", *words],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
    )
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert file in last
    assert "cannot be used (File too large): make room" in last
    assert not list((tmp_path / "out").glob("*.ckpt"))
