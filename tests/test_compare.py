"""`mpvg compare` end to end on a small set, and one line for everything that cannot work."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpvg.checkpoint import load_model
from mpvg.cli import main
from mpvg.compare.folder import RunFolder
from mpvg.compare.rates import choose
from mpvg.compare.settings import Settings
from mpvg.compare.training import evaluate
from mpvg.data.preprocessing import to_tensors
from mpvg.data.sources import load_data
from mpvg.out import locked
from test_data import arrays, save, tree


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

    # the trained models are kept, with all that it takes to use them
    data = load_data(dataset)
    for row in found:
        name = re.sub(r"[^a-z0-9_]+", "-", row["scheme"])
        card, model = load_model(one / "runs" / f"{name}-seed{row['seed']}.safetensors")
        assert (card.scheme, card.classes, card.data["seed"]) == (row["scheme"], data.classes, int(row["seed"]))
        pixels, labels = to_tensors(data.test)
        outcome = evaluate(model, [((card.preprocessing(pixels),), labels)])
        assert outcome.accuracy == float(row["accuracy"])

    # the numbers do not depend on the number of workers
    assert compare(dataset, two, "--workers", "2") == 0
    assert rows(two) == found

    # finished runs are kept, and more seeds and schemes can be added
    kept = {path: path.stat().st_mtime_ns for path in (one / "runs").iterdir()}
    assert sorted(path.suffix for path in kept) == [".json"] * 4 + [".safetensors"] * 4
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
    damaged = next((one / "runs").glob("*.json"))
    damaged.write_text("{")
    assert compare(str(other), one) == 0
    assert "3 of 4 runs had finished" in capsys.readouterr().out
    assert json.loads(damaged.read_text())["curve"]

    save(Path(dataset), **arrays(side=10))
    assert compare(dataset, one) == 2
    assert "data_hash" in capsys.readouterr().err
    with locked(two):
        assert compare(str(other), two) == 2
        assert "in use by another mpvg process" in capsys.readouterr().err
    (one / "runs").joinpath("broken.json").touch()
    RunFolder(one, Settings(data="", model="", epochs=1, batch_size=1, lrs=(1.0,)), load_data(dataset)).make(
        overwrite=True
    )
    assert sorted(path.name for path in one.iterdir()) == ["config.json", "runs", "trials"]
    assert not list((one / "runs").iterdir())
    assert compare(dataset, one, "--overwrite") == 0
    assert "0 of 4 runs had finished" in capsys.readouterr().out


def test_a_loss_that_is_no_number(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(dataset, tmp_path / "out", "--lr", "1e30") == 3
    error = capsys.readouterr().err
    assert "seed 0" in error
    assert "lower the learning rate" in error
    assert f"kept in {tmp_path / 'out'}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schemes", "default,mpgv"], "did you mean 'mpvg'"),
        (["--schemes", "gap,gap"], "names 'gap' twice"),
        (["--schemes", "gap:join_input=false"], "nothing would read the table"),
        (["--schemes", "mpvg:last_norm=9"], "last_norm=9"),
        (["--model", "mpvg_vit_nan"], "did you mean 'mpvg_vit_nano'"),
        (["--model", "resnet18"], "'resnet18' is not converted"),
        (["--model", "mpvg_deit_tiny_patch16_224"], "patches of 16 x 16.*--img-size 16"),
        (["--data", "digts"], "did you mean 'digits'"),
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--seeds", "0"], "--seeds: '0' is not a whole number from 1"),
        (["--epochs", "x"], "--epochs: 'x'"),
        (["--layer-decay", "1.5"], "layer_decay 1.5: name a number above 0 and up to 1"),
        (["--layer-decay", "slow"], "--layer-decay: invalid float value: 'slow'"),
        (["--trains", "heads"], "'heads' is unknown .did you mean 'head'"),
        (
            ["--trains", "positions", "--schemes", "mpvg,gap", "--model", "mpvg_t2t_vit_7", "--img-size", "32"],
            "scheme 'gap' leaves this model none to train.*such as 'mpvg', or train 'head' or 'all'",
        ),
        (["--lr", "-1"], "--lr: '-1' is not a number above 0"),
        (["--lr", "0.1,nan"], "--lr: 'nan' is not a number above 0"),
        (["--val-fraction", "1"], "--val-fraction: '1' is not a part between 0 and 1"),
        (["--device", "tpu"], "--device: 'tpu' is not auto"),
        (["--device", "cuda:99"], "'cuda:99' is not on this machine"),
        (["--img-size", "512"], r"512 x 512 pixels are 16,384 patches.*--img-size 32"),
        (["--img-size", "9"], r"9 x 9 pixels cannot be cut.*2 x 2.*--img-size 8"),
        (["--img-size", "1"], r"1 x 1 pixels cannot be cut.*--img-size 4"),
        (["--data", "mnsit:/tmp"], "did you mean 'mnist'"),
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


def test_several_rates(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert compare(dataset, out, "--lr", "1e-9,0.01,1e30", "--json") == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert "[10/10] " in captured.err
    for entry, shown in zip(summary["lr_trials"]["by_scheme"], summary["schemes"], strict=True):
        assert [tried["lr"] for tried in entry["tried"]] == [1e-9, 0.01, 1e30]
        accuracies = [tried["val_accuracy"] for tried in entry["tried"]]
        assert accuracies[2] is None
        assert entry["chosen"] == shown["lr"] == choose([{**one, "scheme": ""} for one in entry["tried"]])["lr"]
        assert entry["at_edge"] == (entry["chosen"] == 1e-9)
        assert all(run["lr"] == entry["chosen"] for run in shown["runs"])
    assert sorted(path.name for path in (out / "trials").iterdir())[0] == "default-lr0.01.json"
    assert all("accuracy" not in json.loads(path.read_text()) for path in (out / "trials").iterdir())
    assert any("the best of 1e-09, 0.01, 1e+30 on the validation split of seed 0" in note for note in summary["notes"])
    # a seed is added without another trial, and a trial that was lost is done again with the same outcome
    lost = out / "trials" / "default-lr0.01.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    assert compare(dataset, out, "--lr", "0.01,1e-9,1e30", "--seeds", "3") == 0
    printed = capsys.readouterr().out
    assert "5 of 6 trials of learning rates had finished" in printed
    assert "4 of 6 runs had finished" in printed
    timeless = (
        {key: value for key, value in one.items() if key != "seconds"} for one in (before, json.loads(lost.read_text()))
    )
    assert next(timeless) == next(timeless)
    assert compare(dataset, out, "--lr", "0.01") == 2
    assert "lr [1e-09, 0.01, 1e+30] there, [0.01] here" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert compare(dataset, out, "--lr", "0.01,0.001", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert len(re.findall("^(trial|run) ", printed, re.MULTILINE)) == 8
    assert "8 to do, about " in printed
    assert not out.exists()
    assert compare(dataset, out) == 0
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert compare(dataset, out, "--seeds", "3", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [run["finished"] for run in plan["runs"]] == [True] * 4 + [False] * 2
    left = [run["seconds"] for run in plan["runs"] if not run["finished"]]
    assert plan["seconds"] == pytest.approx(sum(left), abs=0.2)  # one worker
    assert compare(dataset, out, "--epochs", "9", "--dry-run") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert compare(dataset, out, "--epochs", "9", "--dry-run", "--overwrite", "--json") == 0
    assert not any(run["finished"] for run in json.loads(capsys.readouterr().out)["runs"])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == files


def test_images_of_mixed_sizes_are_resized_to_the_models_own(tmp_path: Path, capsys: Any) -> None:
    root = tree(tmp_path / "set")
    Image.new("RGB", (40, 20)).save(root / "train" / "dog" / "wide.png")
    assert compare(str(root), tmp_path / "out", "--json", "--seeds", "1", "--epochs", "1") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["data"]["image_size"] == [32, 32]
    assert "2 sizes" in summary["data"]["note"]


def test_bad_images_can_be_left_out(tmp_path: Path, capsys: Any) -> None:
    root = tree(tmp_path / "set")
    (root / "train" / "dog" / "1.png").write_bytes(b"")
    options = ["--seeds", "1", "--epochs", "1", "--json"]
    assert compare(str(root), tmp_path / "out", *options) == 2
    assert re.search(r"dog/1\.png.*--skip-bad-images", capsys.readouterr().err)
    assert compare(str(root), tmp_path / "out", *options, "--skip-bad-images") == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["data"]["skipped"]) == 1
    assert "--skip-bad-images" in summary["command"]
    assert any("Left out as unreadable: 1 image;" in note for note in summary["notes"])
    assert summary["data"]["class_counts"] == {"train": [4, 3], "test": [4, 4]}


def test_imbalance_is_told(tmp_path: Path, capsys: Any) -> None:
    labels = np.array([0] * 16 + [1] * 6 + [2] * 2)
    assert compare(save(tmp_path / "set.npz", train_labels=labels), tmp_path / "out", "--seeds", "1") == 0
    assert (
        "imbalanced, 2 to 16 training images each: always answering '0' would have 33.33 %" in capsys.readouterr().out
    )
