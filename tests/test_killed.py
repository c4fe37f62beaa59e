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

from mpvg.checkpoint import load_model

pytestmark = pytest.mark.slow
KILLS = 20


def start(words: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mpvg", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def killed(words: list[str], tmp_path: Path, *, longest: float) -> list[Path]:
    """Start a command, kill it at a random moment and start it again, until it has been killed KILLS times.

    Returns:
        The folders in which it came to its end: where it does so between kills, it begins in another folder.
    """
    moments = random.Random(0)
    outs, kills = [tmp_path / "killed0"], 0
    while kills < KILLS:
        process = start([*words, str(outs[-1])])
        try:
            assert process.wait(timeout=moments.uniform(0, longest)) == 0
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
    for out in killed(words, tmp_path, longest=0.7 * (time.monotonic() - started)):
        assert rows(out) == whole


def test_fit(tmp_path: Path) -> None:
    words = ["fit", "--trainer.max_epochs", "12", "--model.arguments.drop_path_rate", "0.1", "--out"]
    started = time.monotonic()
    assert start([*words, str(tmp_path / "whole")]).wait() == 0
    for out in killed(words, tmp_path, longest=0.7 * (time.monotonic() - started)):
        for name in ("last.ckpt", "best.ckpt", "best.safetensors"):
            whole, again = (load_model(folder / name)[1].state_dict() for folder in (tmp_path / "whole", out))
            assert all(torch.equal(whole[key], again[key]) for key in whole), name
