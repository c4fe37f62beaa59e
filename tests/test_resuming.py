"""A training that is stopped in the middle of an epoch ends where it would have, from whatever its images are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mpvg.cli import main
from mpvg.train.module import ImageClassification
from test_large import folder, parquet, tars

RECIPE = [
    "--model.recipe.lr=0.01",
    "--model.recipe.ema_decay=0.9",
    "--model.recipe.augmentation.rand_augment=rand-m9-mstd0.5-inc1",
    "--model.recipe.augmentation.erasing=0.5",
    "--model.recipe.augmentation.mixup=0.8",
    "--model.recipe.augmentation.repeats=2",
    "--model.arguments={drop_path_rate: 0.3}",
]
WAYS: dict[str, tuple[Any, list[str]]] = {
    "memory": (folder, []),
    "folder": (folder, ["--data.workers=0"]),
    "tars": (tars, ["--data.workers=2"]),
    "stream": (parquet, ["--data.streaming=true", "--data.workers=2"]),
}


FIRST, SECOND = 1, 12  # steps in these epochs
QUICK = {("memory", FIRST), ("memory", SECOND), ("folder", SECOND), ("stream", SECOND)}


@pytest.mark.parametrize(
    ("way", "stopped"),
    [
        pytest.param(way, stopped, marks=() if (way, stopped) in QUICK else pytest.mark.slow)
        for way in WAYS
        for stopped in (FIRST, SECOND)
    ],
)
def test_stopped_within_an_epoch(
    way: str, stopped: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, options = WAYS[way]
    source = write(tmp_path / "set")
    words = ["fit", "--data", str(source), *options, *RECIPE, "--img-size=16", "--data.batch_size=4"]
    words += ["--val-fraction=0", "--trainer.max_epochs=2", "--save_every=1", "--trainer.logger=false"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    step = ImageClassification.training_step

    def killed(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == stopped + 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(ImageClassification, "training_step", killed)
        assert main([*words, "--out", str(tmp_path / "again")]) == 130
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "again")]) == 0
    assert re.search(rf"Going on from .*, in epoch \d, after step {stopped + 1}\.", capsys.readouterr().out)
    one, two = (torch.load(tmp_path / out / "last.ckpt", weights_only=True) for out in ("whole", "again"))
    assert one["global_step"] == two["global_step"] == 20
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, two["state_dict"][name]), name
