"""A training that a signal stops exits with 0, and ends where it would have; two checkpoints are kept."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpvg.train.data import ImageDataModule
from mpvg.train.module import ImageClassification
from mpvg.train.progress import TrainingProgress
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
