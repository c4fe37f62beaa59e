"""Exported models compute what PyTorch computes, are as small as folding promises, and carry what a reader needs."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

import mpvg
from families import CEIT, FAMILIES, SWIN, VIT, VIT_LITE, Family, build
from helpers import perturb, relative
from mpvg.checkpoint import Card, load_model, resize, save_safetensors
from mpvg.data.preprocessing import Preprocessing
from mpvg.errors import UserError
from mpvg.export import write_onnx, write_safetensors, write_torch_export

ROOT = Path(__file__).parents[1]
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
@pytest.mark.parametrize("scheme", ["mpvg", pytest.param("lape", marks=pytest.mark.slow)])
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
