"""`mpvg fit` and `mpvg compare` from weights, and `mpvg share`: what starts, what goes on, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import mpvg
from helpers import images, perturb
from mpvg.checkpoint import load_model
from mpvg.cli import main
from mpvg.create import starting_point
from mpvg.data.sources import load_data
from test_data import arrays, save
from test_train import fit

SHAPE: dict[str, Any] = {"depth": 3, "embed_dim": 24, "num_heads": 3, "patch_size": 4}
ARGUMENTS = [word for name, value in SHAPE.items() for word in (f"--model.arguments.{name}", str(value))]


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return save(tmp_path / "set.npz")


@pytest.fixture
def plain(dataset: str, tmp_path: Path) -> Path:
    """Weights of a plain model, trained on images of 8 pixels."""
    assert fit(dataset, tmp_path / "plain", "--model.scheme", "gap", "--trainer.max_epochs", "1") == 0
    return tmp_path / "plain" / "best.safetensors"


@pytest.mark.parametrize("preserve", [True, False])
def test_fit_starts_from_weights(
    dataset: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], preserve: bool
) -> None:
    out = tmp_path / "fine"
    words = ["--model.pretrained", str(plain), "--model.preserve", str(preserve).lower(), "--trainer.max_epochs", "1"]
    frozen = ["--model.recipe.trains", "head", "--model.recipe.lr", "1e-9"]
    assert fit(dataset, out, *words, *frozen) == 0
    assert f"starts from {plain}" in capsys.readouterr().out.replace("\n", " ")
    (card, tuned), (source_card, source) = load_model(out / "best.ckpt"), load_model(plain)
    assert card.arguments.get("preserve", False) is preserve
    assert str(tuned.scheme) == "mpvg"
    gates = [name for name in tuned.state_dict() if ".ls_pos." in name]
    assert len(gates) == (5 if preserve else 0)
    x = images(4, card.preprocessing.channels, *card.preprocessing.size)
    with torch.no_grad():
        difference = ((tuned(x) - source(x)).abs().max() / source(x).abs().max()).item()
    assert difference < 1e-6 if preserve else difference > 1e-3
    assert card.preprocessing == source_card.preprocessing
    assert main(["test", "--ckpt", str(out / "best.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "mpvg_vit_nano"


def test_images_are_normalised_as_the_weights_expect(dataset: str, plain: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other.npz", train_images=arrays()["train_images"] // 3)
    for pretrained, expected in ((plain, plain), (None, None)):
        out = tmp_path / f"out-{expected is None}"
        words = ["--model.pretrained", str(pretrained)] if pretrained else []
        assert fit(other, out, "--trainer.max_epochs", "1", *words) == 0
        mean = load_model(out / "best.ckpt")[0].preprocessing.mean
        assert (mean == load_model(plain)[0].preprocessing.mean) == (expected is not None)


def test_other_sizes(dataset: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained at 8 pixels, fine-tuned on oblong images, tested and asked at 16."""
    oblong = {key: np.repeat(value, 2, axis=2) for key, value in arrays().items() if key.endswith("images")}
    out = tmp_path / "oblong"
    words = ["--model.pretrained", str(plain), "--trainer.max_epochs", "1"]
    assert fit(save(tmp_path / "oblong.npz", **oblong), out, *words) == 0
    card, model = load_model(out / "best.ckpt")
    assert card.preprocessing.size == (8, 16)
    assert model.pos_embed.shape[1] == 4 * 8
    capsys.readouterr()
    assert main(["test", "--ckpt", str(plain), "--img-size", "16", "--json"]) == 0
    tested = json.loads(capsys.readouterr().out)
    assert main(["test", "--ckpt", str(plain), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] != tested["loss"]
    pixels = load_data(dataset, img_size=16).test
    classifier = mpvg.load(plain, img_size=16)
    assert classifier.model.pos_embed.shape[1] == 8 * 8
    right = [
        one["top5"][0]["name"] == str(label)
        for one, label in zip(classifier.predict(pixels.images), pixels.labels, strict=True)
    ]
    assert np.mean(right) == pytest.approx(tested["accuracy"], abs=1e-6)
    assert main(["test", "--ckpt", str(plain), "--img-size", "9"]) == 2
    assert "--img-size 8, say" in capsys.readouterr().err


def test_a_model_of_timm(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = perturb(timm.create_model("vit_tiny_patch16_224", img_size=8, **SHAPE), std=0.05)
    file = tmp_path / "timm.pth"
    torch.save({"state_dict": source.state_dict()}, file)
    out = tmp_path / "fine"
    named = ["--model.name", "vit_tiny_patch16_224.augreg_in21k", *ARGUMENTS, "--model.pretrained", str(file)]
    assert fit(dataset, out, *named, "--model.recipe.trains", "positions", "--trainer.max_epochs", "1") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "the class token is dropped, and the mean over the patch tokens is read out" in told
    assert "the head is new and untrained" in told
    card, tuned = load_model(out / "best.ckpt")
    assert card.model == "vit_tiny_patch16_224.augreg_in21k"
    kept = source.state_dict()
    for name, value in tuned.state_dict().items():
        if name in kept and name.startswith("blocks"):
            assert torch.equal(value, kept[name]), name
    assert (
        main(["share", str(out / "best.ckpt"), str(tmp_path / "shared"), "--metric", "accuracy=1", "--licence", "mit"])
        == 0
    )
    again = timm.create_model(f"local-dir:{tmp_path / 'shared'}", pretrained=True).eval()
    x = images(2, card.preprocessing.channels, *card.preprocessing.size)
    with torch.no_grad():
        assert torch.equal(again(x), tuned(x))
    assert tuple(again.pretrained_cfg["mean"]) == card.preprocessing.mean
    config = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert config["label_names"] == list(card.classes)
    assert config["pretrained_cfg"]["license"] == "mit"


def test_other_weights_are_another_training(
    dataset: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fine"
    start = ["--model.pretrained", str(plain), "--trainer.max_epochs", "1"]
    assert fit(dataset, out, *start) == 0
    assert fit(dataset, out, *start) == 0  # nothing left to do
    assert fit(dataset, tmp_path / "plain", "--model.scheme", "gap", "--trainer.max_epochs", "3", "--overwrite") == 0
    capsys.readouterr()
    assert fit(dataset, out, *start) == 2
    assert "pretrained_hash" in capsys.readouterr().err


def test_compare_starts_from_weights(
    dataset: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compared"
    words = ["compare", "--data", dataset, "--seeds", "1", "--epochs", "1", "--batch-size", "8", "--workers", "1"]
    start = ["--pretrained", str(plain), "--out", str(out)]
    assert main([*words, *start, "--schemes", "gap,mpvg,pvg_cls", "--json"]) == 0
    notes = " ".join(json.loads(capsys.readouterr().out)["notes"])
    assert "Every run started from best.safetensors" in notes
    assert "The class token is new and untrained (pvg_cls)" in notes
    _, model = load_model(out / "runs" / "mpvg-seed0.safetensors")
    assert any(".ls_pos." in name for name in model.state_dict())
    with (out / "results.csv").open() as file:
        assert {row["pretrained"] for row in csv.DictReader(file)} == {str(plain)}
    assert main([*words, *start, "--schemes", "gap,mpvg", "--no-preserve"]) == 2  # the folder is of another start
    assert "preserve" in capsys.readouterr().err
    assert main([*words, *start, "--schemes", "gap,mpvg", "--no-preserve", "--overwrite"]) == 0
    _, model = load_model(out / "runs" / "mpvg-seed0.safetensors")
    assert not any(".ls_pos." in name for name in model.state_dict())


def test_training_and_comparison_start_alike(dataset: str, plain: Path, tmp_path: Path) -> None:
    start = ["--pretrained", str(plain), "--out", str(tmp_path / "compared")]
    words = ["compare", "--data", dataset, "--seeds", "1", "--epochs", "2", "--batch-size", "8", "--workers", "1"]
    assert main([*words, *start, "--schemes", "mpvg", "--lr", "0.01"]) == 0
    of_fit = ["--model.pretrained", str(plain), "--model.recipe.lr", "0.01", "--seed_everything", "0"]
    assert fit(dataset, tmp_path / "fitted", *of_fit) == 0
    (_, one), (_, two) = (
        load_model(tmp_path / name) for name in ("compared/runs/mpvg-seed0.safetensors", "fitted/last.ckpt")
    )
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.pretrained", "none.pth"], "none.pth is no file"),
        (["--model.pretrained", "true"], "nobody has published weights of mpvg_vit_nano"),
        (["--model.name", "vit_tny"], "model 'vit_tny' is unknown (did you mean 'vit_tiny"),
        (["--model.name", "resnet50"], "model 'resnet50' is not converted"),
        (["--model.name", "vit_base_patch16_18x2_224", "--img-size", "16"], "ParallelThingsBlock"),
        (["--model.name", "mpvg_vit_lite_7_4_32", "--model.pretrained", "PLAIN"], "does not fit mpvg_vit_lite_7_4_32"),
        (["--model.scheme", "gap", "--model.pretrained", "MPVG"], "norm_pos"),
    ],
)
def test_bad_starts(
    dataset: str, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    if "MPVG" in words:
        assert fit(dataset, tmp_path / "mpvg", "--trainer.max_epochs", "1") == 0
    places = {"PLAIN": str(plain), "MPVG": str(tmp_path / "mpvg" / "best.safetensors")}
    capsys.readouterr()
    assert fit(dataset, tmp_path / "bad", *(places.get(word, word) for word in words)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "bad").glob("*"))


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("mpvg.create.build", fail)
    start = starting_point("vit_tiny_patch16_224.augreg_in21k", "mpvg", pretrained=True)
    assert start.origin.normalisation == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"could not be fetched \(no network\).*Name a file"):
        start.build("mpvg")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.ckpt", "out"], "none.ckpt is no file"),
        (["CKPT", "out", "--metric", "accuracy"], "--metric 'accuracy' is not NAME=VALUE"),
        (["CKPT", "CKPT"], "is a file: name a folder"),
    ],
)
def test_bad_shares(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    words: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["share", *(word.replace("CKPT", str(plain)) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert "best.safetensors" in {path.name for path in plain.parent.iterdir()}
