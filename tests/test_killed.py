"""Killed at random moments and started again, a command ends with the results of an undisturbed one."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from test_large import folder

pytestmark = pytest.mark.slow
MIXED = ["--model.recipe.augmentation.mixup=0.8", "--model.recipe.augmentation.cutmix=1.0"]
WAYS: dict[str, list[str]] = {
    "memory": ["--model.recipe.ema_decay=0.9"],
    "memory, no average": [],
    "workers 0": ["--data.workers=0", "--model.recipe.ema_decay=0.9"],
    "workers 2": ["--data.workers=2", "--model.recipe.ema_decay=0.9"],
    "workers 2, no average": ["--data.workers=2"],
}


def start(words: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mpvg", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def killed(words: list[str], tmp_path: Path, *, times: int, between: tuple[float, float]) -> list[Path]:
    """Start a command, kill it at a random moment and start it again, until it has been killed so many times.

    Returns:
        The folders in which it came to its end: where it does so between kills, it begins in another folder.
    """
    moments = random.Random(0)
    outs, kills = [tmp_path / "killed0"], 0
    while kills < times:
        process = start([*words, str(outs[-1])])
        try:
            assert process.wait(timeout=moments.uniform(*between)) == 0
            outs.append(tmp_path / f"killed{len(outs)}")
        except subprocess.TimeoutExpired:
            kills += 1
            if kills % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()  # its workers must notice by themselves
            process.wait()
    assert start([*words, str(outs[-1])]).wait() == 0
    print(f"{kills} kills, {len(outs)} folders")
    return outs


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_compare(tmp_path: Path) -> None:
    words = ["compare", "--schemes", "default,mpvg", "--seeds", "3", "--epochs", "6", "--lr", "0.002,0.004", "--out"]
    started = time.monotonic()
    assert start([*words, str(tmp_path / "whole")]).wait() == 0
    whole = rows(tmp_path / "whole")
    assert len(whole) == 6
    for out in killed(words, tmp_path, times=8, between=(0, 0.7 * (time.monotonic() - started))):
        assert rows(out) == whole


@pytest.mark.parametrize("way", WAYS)
def test_fit(way: str, tmp_path: Path) -> None:
    """Within epochs too, with mixing and drop path: the same weights, and the same average of them."""
    words = ["fit", "--data", str(folder(tmp_path / "set")), "--img-size=16", "--data.batch_size=4", *WAYS[way], *MIXED]
    words += ["--trainer.max_epochs=20", "--model.arguments.drop_path_rate=0.1", "--save_every=3", "--out"]
    started = time.monotonic()
    assert start([*words, str(tmp_path / "whole")]).wait() == 0
    took = time.monotonic() - started
    for out in killed(words, tmp_path, times=6, between=(0.4 * took, 0.9 * took)):
        for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
            found = [torch.load(tmp_path / run / name, weights_only=True)["state_dict"] for run in ("whole", out)]
            assert all(torch.equal(found[0][key], found[1][key]) for key in found[0]), name
        assert (out / "best.safetensors").read_bytes() == (tmp_path / "whole" / "best.safetensors").read_bytes()
