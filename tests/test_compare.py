"""`mpvg compare` end to end on a small set, and one line for everything that cannot work."""

from __future__ import annotations

import csv
import html
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from mpvg import SCHEMES
from mpvg.cli import main
from mpvg.compare import training
from mpvg.compare.folder import locked
from mpvg.compare.settings import Settings
from mpvg.compare.summary import describe, has_converged, rise_over_last_fifth
from mpvg.compare.training import NonFiniteLossError, Schedule, train_run
from mpvg.data.sources import load_data
from mpvg.scheme import PositionScheme
from test_data import arrays, save


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return save(tmp_path / "set.npz")


def compare(dataset: str, out: Path, *options: str, schemes: str = "default,mpvg:first_block=true,last_norm=2") -> int:
    fixed = ["--seeds", "2", "--epochs", "3", "--batch-size", "8", "--workers", "1"]
    return main(["compare", "--data", dataset, "--out", str(out), "--schemes", schemes, *fixed, *options])


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_a_comparison(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert compare(dataset, one) == 0
    printed = capsys.readouterr().out
    found = rows(one)
    assert [(row["scheme"], row["seed"]) for row in found] == [
        ("default", "0"), ("default", "1"),
        ("mpvg:first_block=true,last_norm=2", "0"), ("mpvg:first_block=true,last_norm=2", "1"),
    ]  # fmt: skip
    for column in ("accuracy", "loss", "epochs", "parameters", "lr", "torch", "timm", "mpvg", "hardware"):
        assert all(row[column] for row in found), column
    summary = json.loads((one / "summary.json").read_text())
    accuracies = [float(row["accuracy"]) for row in found]
    assert summary["schemes"][1]["mean"] == pytest.approx(sum(accuracies[2:]) / 2)
    assert summary["schemes"][1]["difference"]["mean"] == pytest.approx((sum(accuracies[2:]) - sum(accuracies[:2])) / 2)
    correlation = summary["schemes"][1]["runs"][0]["correlation"]
    assert correlation["block"] == [0, 1, 2, 3, 4, 5]
    assert summary["schemes"][0]["runs"][0]["correlation"] is None
    assert "not adjusted for several comparisons" in printed
    assert "[4/4] " in printed
    assert all(row["hardware"].endswith("threads a run: 1") for row in found)
    page = (one / "report.html").read_text()
    assert f"mpvg compare --data {dataset}" in " ".join(html.unescape(re.sub("<[^>]+>", "", page)).split())
    assert "http://" not in page.replace("http://www.w3.org", "")

    # the numbers do not depend on the number of workers
    assert compare(dataset, two, "--workers", "2") == 0
    assert rows(two) == found

    # finished runs are kept, and more seeds and schemes can be added
    kept = {path: path.stat().st_mtime_ns for path in (one / "runs").iterdir()}
    assert len(kept) == 4
    assert compare(dataset, one, "--seeds", "2") == 0
    assert "4 of 4 runs had finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (one / "runs").iterdir()} == kept
    assert rows(one) == found

    assert compare(dataset, one, "--epochs", "4") == 2
    error = capsys.readouterr().err
    assert "another configuration (epochs 3 there, 4 here)" in error
    assert error.count("\n") == 1

    # the same images under another name are the same data; a damaged run is done again
    other = Path(dataset).with_name("other.npz")
    other.write_bytes(Path(dataset).read_bytes())
    damaged = next((one / "runs").iterdir())
    damaged.write_text("{")
    assert compare(str(other), one) == 0
    assert "3 of 4 runs had finished" in capsys.readouterr().out
    assert json.loads(damaged.read_text())["curve"]

    save(Path(dataset), **arrays(side=10))
    assert compare(dataset, one) == 2
    assert "data_hash" in capsys.readouterr().err
    with locked(two):
        assert compare(str(other), two) == 2
        assert "in use by another mpvg compare" in capsys.readouterr().err
    assert compare(dataset, one, "--overwrite") == 0
    assert "0 of 4 runs had finished" in capsys.readouterr().out


def test_a_loss_that_is_no_number(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(dataset, tmp_path / "out", "--lr", "1e30") == 3
    error = capsys.readouterr().err
    assert "seed 0" in error
    assert "lower --lr" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schemes", "default,mpgv"], "did you mean 'mpvg'"),
        (["--schemes", "gap,gap"], "names 'gap' twice"),
        (["--schemes", "gap:join_input=false"], "nothing would read the table"),
        (["--schemes", "mpvg:last_norm=9"], "last_norm=9"),
        (["--model", "mpvg_vit_nan"], "did you mean 'mpvg_vit_nano'"),
        (["--model", "resnet18"], "'resnet18' is unknown"),
        (["--model", "mpvg_deit_tiny_patch16_224"], "patches of 16 x 16.*--img-size 16"),
        (["--data", "digts"], "did you mean 'digits'"),
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--seeds", "0"], "--seeds: '0' is not a whole number from 1"),
        (["--epochs", "x"], "--epochs: 'x'"),
        (["--lr", "-1"], "--lr: '-1' is not a number above 0"),
        (["--sedes", "1"], "--sedes"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["compare", "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("mpvg: ")
    assert error.count("\n") == 1


def test_folders_that_are_something_else(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    assert compare(dataset, tmp_path / "full") == 2
    assert "holds other files" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").touch()
    assert compare(dataset, tmp_path / "file") == 2
    assert "cannot be used" in capsys.readouterr().err


def test_training_learns_and_is_reproducible(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(96) % 2
    images = random.integers(0, 40, (96, 8, 8), dtype=np.uint8)
    images[labels == 1, :, 4:] += 150  # bright on the right: where matters, not only what
    images[labels == 0, :, :4] += 150
    splits = {f"{split}_{kind}": value for split in ("train", "val", "test")
              for kind, value in (("images", images), ("labels", labels))}  # fmt: skip
    data = load_data(save(tmp_path / "sides.npz", **splits))
    settings = Settings(data="sides", model="mpvg_vit_nano", epochs=12, batch_size=16, lr=2e-3)
    told: list[float] = []
    record = train_run(settings, "mpvg", 0, data, lambda done, loss: told.append(done))
    assert record["accuracy"] == 1.0
    assert record["curve"]["train_loss"][-1] < record["curve"]["train_loss"][0]
    assert told == sorted(told)
    assert told[-1] == 1.0
    again = train_run(settings, "mpvg", 0, data, lambda done, loss: None)
    assert again["curve"] == record["curve"]
    with pytest.raises(NonFiniteLossError, match=r"mpvg, seed 0, is nan at epoch"):
        train_run(Settings(**{**settings.as_dict(), "lr": 1e30}), "mpvg", 0, data, lambda done, loss: None)


def test_what_every_step_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning rate, decay, smoothing and initial weights, against values computed here."""
    seen: list[dict[str, Any]] = []

    def spy(model: Any, optimizer: Any, images: Any, labels: Any, *, label_smoothing: float) -> float:
        first = model.blocks[0].attn.qkv.weight.detach().clone() if not seen else None
        groups = [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
        rate = optimizer.param_groups[0]["lr"]
        seen.append({"lr": rate, "groups": groups, "first": first, "batch": images, "smoothing": label_smoothing})
        return 1.0

    monkeypatch.setattr(training, "training_step", spy)
    data = load_data("digits")
    settings = Settings(data="digits", model="mpvg_vit_nano", epochs=2, batch_size=64, lr=4e-3, label_smoothing=0.2)
    starts = {}
    for scheme, seed in (("mpvg", 0), ("default", 0), ("mpvg", 1)):
        seen.clear()
        train_run(settings, scheme, seed, data, lambda done, loss: None)
        starts[scheme, seed] = seen[0]["first"], seen[0]["batch"]
    for one, two in zip(starts["mpvg", 0], starts["default", 0], strict=True):
        assert torch.equal(one, two)
    for one, two in zip(starts["mpvg", 0], starts["mpvg", 1], strict=True):
        assert not torch.equal(one, two)

    steps, warmup = 34, 3
    assert len(seen) == steps
    expected = [
        4e-3 * t / warmup if t < warmup else 2e-3 * (1 + math.cos(math.pi * t / steps)) for t in range(1, steps + 1)
    ]
    assert [step["lr"] for step in seen] == pytest.approx(expected, abs=1e-9)
    assert {step["smoothing"] for step in seen} == {0.2}
    matrices = 6 * 4 + 2  # qkv, proj, fc1 and fc2 of each block; patches and head
    assert (0.05, matrices) in seen[0]["groups"]


def test_a_step_smooths_labels_and_moves_weights() -> None:
    model: Any = timm.create_model("mpvg_vit_nano", img_size=8, in_chans=1)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    with torch.no_grad():
        log = model.eval()(images).log_softmax(1)
    expected = -(0.8 * log[torch.arange(4), labels] + 0.2 * log.mean(1)).mean().item()
    before = model.head.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = training.training_step(model, optimizer, images, labels, label_smoothing=0.2)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert not torch.equal(model.head.weight, before)


def test_rise_is_measured_from_four_fifths_to_the_end() -> None:
    short = {"steps": 4, "curve": {"step": [1, 2, 3, 4], "val_accuracy": [0.1, 0.5, 0.9, 0.9]}}
    assert rise_over_last_fifth(short) == 0.0
    assert not has_converged([short])
    curve = {"step": [20, 40, 60, 80, 100], "val_accuracy": [0.1, 0.5, 0.8, 0.85, 0.9]}
    rising = {"steps": 100, "curve": curve}
    assert rise_over_last_fifth(rising) == pytest.approx(0.05)
    assert not has_converged([rising])
    assert has_converged([{"steps": 100, "curve": {**curve, "val_accuracy": [0.1, 0.5, 0.8, 0.9, 0.904]}}])


@pytest.mark.parametrize(
    ("epochs", "train", "val", "points"), [(50, 1149, 288, 40), (1, 40_000, 10_000, 5), (2, 3, 3, 5)]
)
def test_reading_the_curve_takes_a_small_part_of_the_time(epochs: int, train: int, val: int, points: int) -> None:
    schedule = Schedule.of(Settings(data="", model="", epochs=epochs, batch_size=64, lr=1.0), train)
    steps = schedule.curve_steps(val)
    assert len(steps) == min(points, schedule.steps)
    assert {schedule.steps, round(0.8 * schedule.steps)} <= steps


def test_descriptions_tell_schemes_apart() -> None:
    described = {name: describe(scheme, first_block="lape" in name) for name, scheme in SCHEMES.items()}
    assert len(set(described.values())) == len(SCHEMES)
    assert "every block but the first" in described["mpvg"]
    assert "block 5" in describe(PositionScheme(last_norm=5), first_block=True)
