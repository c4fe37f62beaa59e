"""`mpvg export` from the command line, and the example that reads its files with onnxruntime alone."""

from __future__ import annotations

import errno
import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import mpvg
from families import VIT, build
from mpvg.checkpoint import Card, load_model
from mpvg.cli import main
from mpvg.commands import export as command
from mpvg.commands import options
from mpvg.data.preprocessing import Preprocessing
from mpvg.export import write_torch_export
from test_data import save
from test_export import card_of
from test_predict import picture

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "onnx_inference.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model that was trained for an epoch, on colour images."""
    folder = tmp_path_factory.mktemp("trained")
    random = np.random.default_rng(0)
    coloured = {
        f"{split}_images": random.integers(0, 256, (24, 8, 8, 3), np.uint8) for split in ("train", "val", "test")
    }
    data = save(folder / "set.npz", **coloured)
    fixed = ["--data", data, "--out", str(folder / "fit"), "--data.batch_size", "8"]
    assert main(["fit", *fixed, "--trainer.max_epochs", "1", "--model.recipe.lr", "0.01"]) == 0
    return folder / "fit"


def refused(capsys: pytest.CaptureFixture[str], words: list[str], code: int = 2) -> str:
    """Run a command that is to fail in one line, and return it."""
    capsys.readouterr()
    assert main(words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def export(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["export", *map(str, words), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found: dict[str, Any] = json.loads(captured.out)
    return found


def test_every_format_from_the_command_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {path.name: path.read_bytes() for path in trained.glob("best.*")}
    for format_, suffix in (("onnx", ".onnx"), ("torch_export", ".pt2"), ("safetensors", ".safetensors")):
        batch = ["--dynamic-batch"] if format_ != "safetensors" else []
        found = export(capsys, trained / "best.ckpt", "--format", format_, "--fold", *batch)
        assert found["file"] == str(trained / f"best-folded{suffix}")
        assert found["inputs"] == {"images": ["batch", 3, 8, 8]}
        assert found["outputs"] == {"logits": ["batch", 3]}
        assert found["largest_difference"] < 1e-5
        assert found["megabytes"] == pytest.approx(Path(found["file"]).stat().st_size / 1e6, abs=1e-3)
        found = export(
            capsys, trained / "best.safetensors", "--format", format_, "--img-size", "16", "12", "--out", tmp_path
        )
        assert found["file"] == str(tmp_path / f"best-16x12{suffix}")
        assert found["inputs"]["images"][1:] == [3, 16, 12]
    assert {path.name: path.read_bytes() for path in trained.glob("best.*")} == kept
    assert main(["export", str(trained / "best.ckpt"), "--out", str(tmp_path / "x.onnx")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{tmp_path / 'x.onnx'}: 0.")
    assert " MB, images (1, 3, 8, 8) to logits (1, 3), differs from the model by at most " in printed
    assert not list(tmp_path.glob(".*"))


def test_a_folded_checkpoint_goes_on(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prediction, test, analysis and export take it as they take the checkpoint that it was folded from."""
    folded = tmp_path / "folded.safetensors"
    export(capsys, trained / "best.ckpt", "--format", "safetensors", "--fold", "--out", folded)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    whole, small = mpvg.load(trained / "best.ckpt"), mpvg.load(folded)
    np.testing.assert_allclose(small.features(images), whole.features(images), rtol=1e-4, atol=1e-5)
    assert not [name for name in small.model.state_dict() if "norm_pos" in name]
    accuracies = []
    for checkpoint in (trained / "best.ckpt", folded):
        assert main(["test", "--ckpt", str(checkpoint), "--json"]) == 0
        accuracies.append(json.loads(capsys.readouterr().out)["accuracy"])
    assert accuracies[0] == accuracies[1]
    assert main(["analyze", str(folded), "--images", "8", "--causal-images", "0", "--out", str(tmp_path / "look")]) == 0
    again = export(capsys, folded, "--out", tmp_path / "again.onnx")
    assert again["folded"]
    message = refused(capsys, ["export", str(folded), "--img-size", "16"])
    assert "a folded model has one size, 8 x 8" in message


def test_what_a_reader_finds_in_a_file(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card, _ = load_model(trained / "best.ckpt")
    texts = dict.fromkeys(("mpvg", "classes", "mean", "std", "input_size"), "")
    export(capsys, trained / "best.ckpt", "--fold", "--out", tmp_path / "model.onnx")
    export(capsys, trained / "best.ckpt", "--fold", "--format", "torch_export", "--out", tmp_path / "model.pt2")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    torch.export.load(tmp_path / "model.pt2", extra_files=texts)
    assert session.get_modelmeta().custom_metadata_map == texts
    found = {key: json.loads(text) for key, text in texts.items()}
    assert Card.from_dict(found["mpvg"]) == replace(card, folded=True)
    assert (found["classes"], found["input_size"]) == (["0", "1", "2"], [3, 8, 8])
    assert (found["mean"], found["std"]) == (list(card.preprocessing.mean), list(card.preprocessing.std))


def test_the_example_needs_onnxruntime_alone(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its answers are those of `mpvg predict`, for files that are resized, grey, or lie on their side."""
    path = tmp_path / "model.onnx"
    export(capsys, trained / "best.ckpt", "--fold", "--dynamic-batch", "--out", path)
    photos = [picture(tmp_path / f"{mode}.png", mode=mode, size=(30, 20)) for mode in ("RGB", "L", "RGBA")]
    lying, exif = Image.open(photos[0]), Image.Exif()
    exif[274] = 6
    lying.save(tmp_path / "lying.png", exif=exif)
    photos.append(tmp_path / "lying.png")
    blocked = "import sys, runpy; sys.modules.update(torch=None, mpvg=None, timm=None, torchvision=None); "
    run = f"sys.argv = sys.argv[1:]; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    words = [sys.executable, "-I", "-c", blocked + run, str(EXAMPLE), str(path), *map(str, photos)]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    for line, expected in zip(printed, mpvg.load(trained / "best.ckpt").predict(photos), strict=True):
        file, names = line.split(": ")
        assert file == expected["file"]
        named = [guess.rsplit(" ", 1) for guess in names.split(", ")]
        assert [name for name, _ in named] == [guess["name"] for guess in expected["top5"]]
        assert [float(prob) for _, prob in named] == pytest.approx([g["prob"] for g in expected["top5"]], abs=1e-4)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA"])
def test_the_example_sees_the_same_pixels(mode: str, tmp_path: Path) -> None:
    preprocessing = Preprocessing((8, 12), 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    photo = picture(tmp_path / "photo.png", mode=mode, size=(40, 30))
    about = {"input_size": "[3, 8, 12]", "mean": "[0.5, 0.4, 0.3]", "std": "[0.2, 0.3, 0.4]"}
    found = runpy.run_path(str(EXAMPLE))["preprocess"](str(photo), about)
    classifier = mpvg.predict.Classifier(replace(card_of(VIT), preprocessing=preprocessing), build(VIT, "mpvg"))
    pixels = torch.from_numpy(classifier.read(photo)).permute(2, 0, 1)[None]
    assert found.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found), preprocessing(pixels))


def test_bad_options(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(trained / "best.ckpt")

    def error(*words: object) -> str:
        return refused(capsys, ["export", *map(str, words)])

    assert "'onxn' (choose from" in error(checkpoint, "--format", "onxn")
    assert "leave it out" in error(checkpoint, "--format", "safetensors", "--dynamic-batch")
    assert "--img-size 8 8 8: give one side" in error(checkpoint, "--img-size", "8", "8", "8")
    assert "--img-size 16" in error(checkpoint, "--img-size", "15")
    assert "'0' is not a whole number" in error(checkpoint, "--img-size", "0")
    assert "end in .onnx" in error(checkpoint, "--out", tmp_path / "model.ckpt")
    assert "is no file" in error(tmp_path / "none.ckpt")
    (tmp_path / "damaged.ckpt").write_bytes(Path(checkpoint).read_bytes()[:1000])
    assert "damaged" in error(tmp_path / "damaged.ckpt")
    itself = trained / "best.safetensors"
    assert "is the checkpoint itself" in error(itself, "--format", "safetensors")
    assert "is the checkpoint itself" in error(itself, "--format", "safetensors", "--fold", "--out", itself)
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize(("format_", "needed"), [("onnx", True), ("torch_export", False), ("safetensors", False)])
def test_a_missing_extra_is_named_where_it_is_needed(
    format_: str, needed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    message = refused(capsys, ["export", str(tmp_path / "none.ckpt"), "--format", format_])
    assert ("needs onnx, onnxruntime, onnxscript: pip install 'mpvg[export]'" in message) == needed


def test_places_that_cannot_be_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are refused before the work begins; a disk that fills up on the way leaves what was there."""
    checkpoint, out = str(trained / "best.ckpt"), tmp_path / "model.onnx"

    def begin(*_: Any) -> None:
        raise AssertionError("the work has begun")

    out.write_text("an earlier export")
    with monkeypatch.context() as patch:
        patch.setattr(command, "_write", begin)
        assert "No such file or directory" in refused(
            capsys, ["export", checkpoint, "--out", str(tmp_path / "no" / "model.onnx")]
        )
        assert "Not a directory" in refused(capsys, ["export", checkpoint, "--out", str(out / "model.onnx")])
        patch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may do anything
        assert f"{out} cannot be written (it is read-only)" in refused(
            capsys, ["export", checkpoint, "--out", str(out)]
        )

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(out))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left on device): make" in refused(capsys, ["export", checkpoint, "--out", str(out)])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert out.read_text() == "an earlier export"


def test_a_file_that_differs_is_not_kept(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_another(model: Any, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            model.head.weight.mul_(1.01)
        write_torch_export(model, *args, **kwargs)

    monkeypatch.setattr(command, "write_torch_export", write_another)
    words = ["export", str(trained / "best.ckpt"), "--fold", "--format", "torch_export", "--out", str(tmp_path)]
    assert "was not kept: its outputs differ" in refused(capsys, words, code=3)
    assert not list(tmp_path.iterdir())
