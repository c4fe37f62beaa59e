"""Exported models compute what PyTorch computes, are as small as folding promises, and carry what a reader needs."""

from __future__ import annotations

import errno
import json
import logging
import os
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

import mpvg
from families import CEIT, FAMILIES, SWIN, VIT, VIT_LITE, Family, build
from helpers import perturb, relative
from mpvg.checkpoint import Card, load_model, resize, save_safetensors
from mpvg.cli import main
from mpvg.commands import export as command
from mpvg.commands import options
from mpvg.data.preprocessing import Preprocessing
from mpvg.errors import UserError
from mpvg.export import write_onnx, write_safetensors, write_torch_export
from test_data import save
from test_predict import picture

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "onnx_inference.py"
CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])


def digits(family: Family, *, batch: int, size: tuple[int, int] | None = None) -> Tensor:
    """Return real images (B, 2, H, W), normalised: scanned digits, and beside each its mirror image."""
    side = family.shrunken["img_size"]
    pixels = torch.from_numpy(load_digits().images[:batch]).float()[:, None]
    pixels = F.interpolate((pixels - 4.9) / 6.0, size or (side, side), mode="bicubic")
    return torch.cat([pixels, pixels.flip(3)], dim=1)


def size_of(images: Tensor) -> tuple[int, int, int]:
    return images.shape[1], images.shape[2], images.shape[3]


def answers(path: Path, images: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(found) for found in session.run(None, {"images": images.numpy()})]


Written = Callable[..., tuple[Any, Path]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return a maker of models and their .onnx files of dynamic batch, each made once."""
    folder = tmp_path_factory.mktemp("onnx")
    made: dict[tuple[str, str, bool], tuple[Any, Path]] = {}

    def write(family: Family, scheme: str, *, folded: bool) -> tuple[Any, Path]:
        key = (family.models[0], scheme, folded)
        if key not in made:
            few = {"depths": (1, 1, 1)} if family is SWIN else {"depth": 2}  # blocks, to be quick
            model = build(family, scheme, **({} if scheme in ("mpvg", "gap") else few))
            path = folder / f"{len(made)}.onnx"
            size = size_of(digits(family, batch=1))
            write_onnx(mpvg.fold(model) if folded else model, path, input_size=size, dynamic_batch=True)
            made[key] = model, path
        return made[key]

    return write


@every_family
@pytest.mark.parametrize("scheme", ["mpvg", "lape"])
@pytest.mark.parametrize("folded", [False, True], ids=["whole", "folded"])
def test_onnx_computes_what_the_model_does(
    family: Family,
    scheme: str,
    folded: bool,
    written: Written,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, path = written(family, scheme, folded=folded)
    assert capfd.readouterr() == ("", ""), "the exporter is to be quiet"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for batch in range(1, 6):
        images = digits(family, batch=batch)
        (found,) = answers(path, images)
        with torch.no_grad():
            expected = model(images)
        assert found.shape == expected.shape
        assert relative(found, expected) <= 1e-5  # 1e-4 is promised
    graph = onnx.load(path).graph
    assert [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        *size_of(images),
    ]
    assert ([port.name for port in graph.input], [port.name for port in graph.output]) == (["images"], ["logits"])
    assert not [path for path in path.parent.iterdir() if path.suffix != ".onnx"], "weights are in the file"
    assert str(ROOT).encode() not in path.read_bytes(), "nor does the file say where its maker's sources lay"


@every_family
def test_a_folded_graph_costs_at_most_one_addition_a_block(family: Family, written: Written) -> None:
    """None where the linear layer that reads a position has a bias and reads tokens in their order."""
    model, folded = written(family, "mpvg", folded=True)
    counts, plain = (
        Counter(node.op_type for node in onnx.load(path).graph.node)
        for path in (folded, written(family, "gap", folded=True)[1])
    )
    delivered = sum(position is not None for position in model.positions().blocks)
    assert delivered >= family.depth - 1
    assert counts["Add"] - plain["Add"] == (0 if family in (VIT, CEIT) else delivered)
    assert {**counts, "Add": 0} == {**plain, "Add": 0}  # no norm, no other node more
    unfolded = Counter(node.op_type for node in onnx.load(written(family, "mpvg", folded=False)[1]).graph.node)
    assert unfolded["LayerNormalization"] > counts["LayerNormalization"]  # a count of nothing would be equal, too


@every_family
def test_other_sizes_and_one_image_at_a_time(family: Family, tmp_path: Path) -> None:
    model, images = build(family, "mpvg"), digits(family, batch=1, size=family.wide)
    model.set_input_size(img_size=family.wide, **family.resize)
    write_onnx(mpvg.fold(model), tmp_path / "wide.onnx", input_size=size_of(images))
    with torch.no_grad():
        assert relative(answers(tmp_path / "wide.onnx", images)[0], model(images)) <= 1e-5
    with pytest.raises(Exception, match="Got: 2 Expected: 1"):
        answers(tmp_path / "wide.onnx", torch.cat([images, images]))


@every_family
def test_torch_export_comes_back(family: Family, tmp_path: Path) -> None:
    model, images = build(family, "mpvg"), digits(family, batch=5)
    path = tmp_path / "model.pt2"
    write_torch_export(
        mpvg.fold(model), path, input_size=size_of(images), dynamic_batch=True, metadata={"classes": '["ä"]'}
    )
    extra = {"classes": ""}
    loaded = torch.export.load(path, extra_files=extra)
    assert extra == {"classes": '["ä"]'}
    for batch in (1, 5):
        assert relative(loaded.module()(images[:batch]), model(images[:batch])) <= 1e-6


def card_of(family: Family, scheme: str = "mpvg", **changes: Any) -> Card:
    side = family.shrunken["img_size"]
    return Card(
        model=family.models[0],
        scheme=scheme,
        arguments={**family.shrunken, "img_size": (side, side), **changes},
        preprocessing=Preprocessing((side, side), 2, (0.5, 0.4), (0.2, 0.3)),
        classes=CLASSES,
        data={},
    )


@every_family
@pytest.mark.parametrize("scheme", ["mpvg", "lape", "default"])
def test_folded_weights_come_back(family: Family, scheme: str, tmp_path: Path) -> None:
    card, images, path = card_of(family, scheme), digits(family, batch=2), tmp_path / "folded.safetensors"
    folded = mpvg.fold(build(family, scheme))
    save_safetensors(path, replace(card, folded=True), folded)
    found, loaded = load_model(path)
    assert found.folded
    assert torch.equal(loaded(images), folded(images))
    save_safetensors(path, card, folded)
    if scheme != "default":  # which has nothing to fold away, but tables of none
        with pytest.raises(UserError, match="the weights do not fit"):
            load_model(path)


@every_family
def test_a_resized_checkpoint_comes_back(family: Family, tmp_path: Path) -> None:
    card, model, path = card_of(family), build(family, "mpvg"), tmp_path / "wide.safetensors"
    images = digits(family, batch=2, size=family.wide)
    with pytest.raises(UserError, match=r"img.size"):
        resize(card, model, (family.wide[0], family.wide[1] - 1))
    resized = resize(card, model, family.wide)
    alone = build(family, "mpvg")
    alone.set_input_size(img_size=family.wide, **family.resize)
    assert torch.equal(model(images), alone(images))
    save_safetensors(path, resized, model)
    found, loaded = load_model(path)
    assert found.preprocessing.size == family.wide
    assert torch.equal(loaded(images), model(images))


def test_a_nano_keeps_its_patches(tmp_path: Path) -> None:
    """Its patches are of 2 pixels up to 16 and of 4 above, where it is not told."""
    card = Card("mpvg_vit_nano", "mpvg", {"img_size": (12, 12), "in_chans": 1, "num_classes": 7},
                Preprocessing((12, 12), 1, (0.5,), (0.2,)), CLASSES, {})  # fmt: skip
    model, images = perturb(card.build()).eval(), digits(VIT, batch=2, size=(24, 32))[:, :1]
    save_safetensors(tmp_path / "model.safetensors", resize(card, model, (24, 32)), model)
    loaded = load_model(tmp_path / "model.safetensors")[1]
    assert loaded.patch_embed.grid_size == (12, 16)
    assert torch.equal(loaded(images), model(images))


def test_cards_of_before_are_unfolded() -> None:
    older = card_of(VIT).as_dict()
    del older["folded"]
    assert not Card.from_dict(json.loads(json.dumps(older))).folded


@pytest.mark.parametrize("family", [VIT_LITE, SWIN], ids=lambda family: family.models[0])
def test_feature_maps(family: Family, tmp_path: Path) -> None:
    images = digits(family, batch=2)
    features = timm.create_model(family.models[0], features_only=True, out_indices=(0, 2), **family.shrunken)
    folded = mpvg.fold(perturb(features).eval())
    write_onnx(folded, tmp_path / "maps.onnx", input_size=size_of(images), dynamic_batch=True)
    for found, expected in zip(answers(tmp_path / "maps.onnx", images), folded(images), strict=True):
        assert relative(found, expected) <= 1e-5


def test_timm_s_own_models(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=7, in_chans=2).eval()
    images = digits(VIT, batch=3, size=(32, 32))
    assert model.blocks[0].attn.fused_attn
    write_onnx(model, tmp_path / "timm.onnx", input_size=(2, 32, 32), dynamic_batch=True)
    assert model.blocks[0].attn.fused_attn, "a model is left as it was"
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "timm.onnx").graph.node)
    assert (kinds["Softmax"], kinds["Mul"]) == (2, 2), "fused attention would scale queries and keys"
    assert relative(answers(tmp_path / "timm.onnx", images)[0], model(images)) <= 1e-5


@pytest.mark.parametrize(
    "write",
    [
        partial(write_onnx, input_size=(2, 16, 16)),
        partial(write_torch_export, input_size=(2, 16, 16)),
        write_safetensors,
    ],
    ids=["onnx", "torch_export", "safetensors"],
)
def test_a_model_in_training_mode_is_refused(write: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training mode: call \.eval\(\) first"):
        write(build(VIT, "mpvg").train(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


# From here on the command line.


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
