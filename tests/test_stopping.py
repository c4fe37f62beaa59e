"""A training that a signal stops exits with 0, and ends where it would have; two checkpoints are kept."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mpvg.cli import main
from mpvg.errors import UserError
from mpvg.train.checkpoints import WholeCheckpoints, to_go_on_from
from mpvg.train.data import ImageDataModule
from mpvg.train.fit import MAY_CHANGE
from mpvg.train.module import ImageClassification
from mpvg.train.progress import TrainingProgress
from test_large import folder, tars
from test_resuming import RECIPE
from test_train import dataset, fit

assert dataset
EPOCHS = ["--trainer.max_epochs=2", "--trainer.logger=false", *RECIPE]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return those of the model and of their average."""
    found: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert any(name.startswith("ema.") for name in found)
    return found


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A set, and an undisturbed training on it."""
    from test_data import save

    folder = tmp_path_factory.mktemp("whole")
    source = save(folder / "set.npz")
    assert fit(source, folder / "out", *EPOCHS) == 0
    return source, folder / "out"


def signalled(method: Callable[..., Any], when: Callable[[Any], bool], *signals: signal.Signals) -> Callable[..., Any]:
    """Return a method that first sends this process signals."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if when(self):
            for number in signals:
                os.kill(os.getpid(), number)
        return method(self, *args, **kwargs)

    return call


MOMENTS: dict[str, tuple[Any, str, Callable[[Any], bool], str]] = {  # of two epochs of three steps
    "within": (ImageClassification, "training_step", lambda self: self.global_step == 3, r"epoch 2, after step 4"),
    "at its end": (ImageClassification, "training_step", lambda self: self.global_step == 2, "after epoch 1"),
    "validating": (ImageClassification, "validation_step", lambda self: True, "after epoch 1"),
    "between epochs": (TrainingProgress, "on_train_epoch_end", lambda self: True, "after epoch 1"),
    "before the first": (TrainingProgress, "on_train_start", lambda self: True, "before the first step"),
    "reading": (ImageDataModule, "load", lambda self: True, "what was finished is kept"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped_by_a_signal(
    moment: str,
    whole: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, undisturbed = whole
    out = tmp_path / "out"
    owner, name, when, told = MOMENTS[moment]
    twice = [signal.SIGTERM, signal.SIGTERM] if moment != "validating" else [signal.SIGUSR1]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, signalled(getattr(owner, name), when, *twice))
        assert fit(source, out, *EPOCHS) == 0
    printed = capsys.readouterr()
    said = printed.out.splitlines()[-1]
    assert re.search(rf"^Stopped by {twice[0].name}.*{told}.*[Tt]he same command", said), said
    assert not printed.err
    assert not list(out.glob("*.safetensors"))
    assert (out / "last.ckpt").exists() == (moment not in ("before the first", "reading"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert fit(source, out, *EPOCHS) == 0
    for file in ("last.ckpt", "best.ckpt"):
        assert same(undisturbed / file, out / file), file


def test_a_sweep_is_stopped_as_a_whole(
    whole: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = signalled(ImageClassification.training_step, lambda self: self.global_step == 1, signal.SIGTERM)
    monkeypatch.setattr(ImageClassification, "training_step", step)
    assert fit(whole[0], tmp_path / "out", "--lr=0.01,0.02", "--trainer.logger=false") == 0
    said = capsys.readouterr().out
    assert said.count("Learning rate") == 1
    assert re.search(r"Stopped by SIGTERM in epoch 1, after step 2; \S+/lr-0.01/last\.ckpt holds it\.", said)


def test_the_one_before_stands_in_for_a_damaged_one(
    whole: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, undisturbed = whole
    out = Path(shutil.copytree(undisturbed, tmp_path / "out"))
    last, previous = out / "last.ckpt", out / "previous.ckpt"
    (out / ".last.ckpt.123").write_bytes(b"of a process that was killed")
    os.truncate(last, 5000)
    assert fit(source, out, *EPOCHS) == 0
    said = capsys.readouterr().out
    assert re.search(rf"{last} cannot be read .*\. It is left out\.\nGoing on from {previous}, after epoch 1\.", said)
    assert same(undisturbed / "last.ckpt", last)
    assert same(undisturbed / "previous.ckpt", previous)
    assert not list(out.glob(".*"))
    for file in (last, previous):
        os.truncate(file, 5000)
    assert fit(source, out, *EPOCHS) == 2
    error = capsys.readouterr().err
    assert f"To begin anew, remove {last} and {previous}." in error
    assert error.count("\n") == 1


def test_what_may_change_and_what_may_not(
    whole: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, undisturbed = whole
    out = tmp_path / "out"
    step = signalled(ImageClassification.training_step, lambda self: self.global_step == 3, signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(ImageClassification, "training_step", step)
        assert fit(source, out, *EPOCHS) == 0
    for changed, told in {
        "--seed_everything=5": "seed 0 there, 5 here",
        "--model.recipe.ema_decay=0.5": "ema_decay 0.9 there, 0.5 here",
        "--trainer.sync_batchnorm=true": "sync_batchnorm False there, True here",
        "--trainer.callbacks=LearningRateMonitor": "callbacks None there, ",
    }.items():
        assert fit(source, out, *EPOCHS, changed) == 2
        error = capsys.readouterr().err
        assert told in error
        assert f"These may change: --{', --'.join(MAY_CHANGE)}." in error
        assert error.count("\n") == 1
    noted = json.loads((out / "config.json").read_text())
    assert not noted.keys() & {name.rpartition(".")[2] for name in MAY_CHANGE}
    words = ["--save_every=1", "--trainer.accelerator=cpu", "--trainer.strategy=auto", "--trainer.devices=1"]
    words += ["--trainer.logger=true", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    assert fit(source, out, *EPOCHS, *words) == 0
    assert same(undisturbed / "last.ckpt", out / "last.ckpt")


def test_streams_go_on_in_as_many_processes(whole: tuple[str, Path], tmp_path: Path) -> None:
    console = Console(quiet=True)
    last = Path(shutil.copy(whole[1] / "last.ckpt", tmp_path))
    assert to_go_on_from(tmp_path, console, processes=2, streaming=False, clears=True) == last
    assert to_go_on_from(tmp_path, console, processes=1, streaming=True, clears=True) == last
    with pytest.raises(UserError, match=r"was trained in 1 processes, .* and not in 2: go on in 1"):
        to_go_on_from(tmp_path, console, processes=2, streaming=True, clears=True)


def test_weights_that_are_lost_are_not_kept(
    whole: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step after which a weight is no number had a loss that was one."""
    step = ImageClassification.optimizer_step

    def spoilt(self: Any, *args: Any, **kwargs: Any) -> None:
        step(self, *args, **kwargs)
        if self.global_step == 2:
            with torch.no_grad():
                self.model.head.bias.fill_(float("inf"))

    monkeypatch.setattr(ImageClassification, "optimizer_step", spoilt)
    out = tmp_path / "out"
    assert fit(whole[0], out, *EPOCHS, "--save_every=1") == 3
    error = capsys.readouterr().err
    assert re.search(r"model\.head\.bias of \S+ under mpvg is no number any more after step 3: lower the lear", error)
    assert re.search(rf"Kept: {out}/last\.ckpt .*, after step 2, {out}/previous\.ckpt .*, after step 1\.", error)
    assert all(value.isfinite().all() for value in weights(out / "last.ckpt").values())


def number(file: Path) -> int:
    found: int = torch.load(file, weights_only=True)["number"]
    return found


def test_two_checkpoints_are_kept_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    written = WholeCheckpoints()
    for count in range(3):
        written.save_checkpoint({"number": count}, last)
    assert (number(last), number(previous)) == (2, 1)
    for renamed in range(3):  # killed before the first, between both, behind both
        pid = os.fork()
        if not pid:
            names, replace = iter(range(3)), os.replace

            def killed(*paths: Any, stop: int = renamed, names: Any = names, replace: Any = replace) -> None:
                if next(names) == stop:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(*paths)

            monkeypatch.setattr(os, "replace", killed)
            written.save_checkpoint({"number": 3}, last)
            os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        state = [number(file) if file.exists() else None for file in (last, previous)]
        assert state == [[2, 1], [None, 2], [3, 2]][renamed]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "disk", str(disk)]
    )
    if not mounted:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.check_call(["umount", "-l", str(disk)])


@pytest.mark.parametrize("logger", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_a_disk_that_fills_up(
    logger: str,
    whole: tuple[str, Path],
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, undisturbed = whole
    step, out, ballast = ImageClassification.training_step, small_disk / "out", small_disk / "ballast"

    def filled(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 4:
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
        return step(self, batch, batch_idx)

    words = [*EPOCHS, f"--trainer.logger={logger}", "--trainer.log_every_n_steps=1"]
    with monkeypatch.context() as patched:
        patched.setattr(ImageClassification, "training_step", filled)
        assert fit(source, out, *words) == 2
    error = capsys.readouterr().err
    assert re.search(
        rf"mpvg: {out}/\S+ cannot be used \(No space left on device\): make room, and the same command goes on\. "
        rf"Kept: {out}/last\.ckpt after epoch 1, {out}/best\.ckpt after epoch 1\.\n$",
        error,
    ), error
    assert error.count("\n") == 1
    assert not list(out.glob(".*"))
    ballast.unlink()
    assert fit(source, out, *words) == 0
    assert same(undisturbed / "last.ckpt", out / "last.ckpt")


def cut_off(file: Path) -> None:
    os.truncate(file, 30)


@pytest.mark.parametrize(
    ("write", "workers", "spoil"),
    [
        pytest.param(folder, 0, Path.unlink, marks=pytest.mark.slow),
        (folder, 2, cut_off),
        pytest.param(tars, 0, cut_off, marks=pytest.mark.slow),
        pytest.param(tars, 2, Path.unlink, marks=pytest.mark.slow),
    ],
    ids=["folder-0", "folder-2", "tars-0", "tars-2"],
)
def test_an_image_that_becomes_unreadable(
    write: Callable[[Path], Path],
    workers: int,
    spoil: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out, step = write(tmp_path / "set"), tmp_path / "out", ImageClassification.training_step

    def spoilt(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 15:  # the second of seven of the third epoch, of which two workers read four ahead
            for file in (*source.rglob("train/*/*.png"), *source.rglob("train*.tar")):
                spoil(file)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassification, "training_step", spoilt)
    words = ["fit", "--data", str(source), "--out", str(out), f"--data.workers={workers}", "--data.batch_size=6"]
    words += ["--img-size=16", "--val-fraction=0", "--trainer.max_epochs=4", "--trainer.logger=false"]
    assert main(words) == 2
    error = capsys.readouterr().err
    remedy = "put it back as it was" if "No such file" in error and "tar" in error else "with --skip-bad-images"
    assert re.search(
        rf"mpvg: {source}/train\S+.* cannot be read .*{remedy}\. Kept: {out}/last\.ckpt after epoch 2\.", error
    ), error
    assert error.count("\n") == 1
    assert not multiprocessing.active_children()


OF_ONE_PROCESS = """
import errno, os, signal, sys
from mpvg.cli import main
from mpvg.errors import UserError
from mpvg.train import checkpoints, module

what, rank, step, count = sys.argv[1], sys.argv[2], module.training_step, 0

def disturbed(*args):
    global count
    count += 1
    if (os.environ["LOCAL_RANK"], count) == (rank, 5):
        if what == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if what == "image":
            raise UserError("bad.png cannot be read: repair it.")
        if what == "disk":
            def full(*args):
                raise OSError(errno.ENOSPC, "No space left on device")
            checkpoints.torch.save = full
        if what == "nan":
            return step(*args) * float("nan")
    return step(*args)

module.training_step = disturbed
if __name__ == "__main__":
    sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "rank", "code", "said"),
    [
        ("signal", 0, 0, r"Stopped by SIGTERM in epoch 2, after step 5; \S+last\.ckpt holds it\."),
        ("signal", 1, 0, r"Stopped by a signal to another process in epoch 2, after step 5; "),
        (
            "nan",
            1,
            3,
            r"^mpvg: the loss of \S+ under mpvg is nan at epoch 2, step 5: .* Kept: \S+ after epoch 1[^\n]*\n$",
        ),
        ("image", 1, 3, r"mpvg: process 1: bad\.png cannot be read: repair it\. Kept: (.|\n)*mpvg: another process "),
        ("image", 0, 2, r"^mpvg: bad\.png cannot be read: repair it\. Kept: [^\n]*\n$"),
        ("disk", 0, 2, r"^mpvg: \S+ckpt cannot be used \(No space left on device\): make room, [^\n]*\n$"),
    ],
    ids=["signal-0", "signal-1", "nan-1", "image-1", "image-0", "disk-0"],
)
def test_one_of_two_processes(what: str, rank: int, code: int, said: str, dataset: str, tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(OF_ONE_PROCESS)
    words = ["fit", "--data", dataset, "--data.batch_size=8", *EPOCHS, "--trainer.devices=2", "--trainer.strategy=ddp"]
    words += ["--trainer.accelerator=cpu", "--out"]

    def run(disturbance: str, folder: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), disturbance, str(rank), *words, str(folder)]
        silent = {**os.environ, "PYTHONWARNINGS": "ignore"}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=silent)

    ended = run(what, out)
    assert ended.returncode == code, ended.stderr
    assert re.search(said, ended.stdout if code == 0 else ended.stderr), ended.stdout + ended.stderr
    if what == "signal":
        assert run("nothing", out).returncode == run("nothing", tmp_path / "whole").returncode == 0
        assert same(tmp_path / "whole" / "last.ckpt", out / "last.ckpt")
