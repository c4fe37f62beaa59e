"""`mpvg.save`: what is written is the same model again in another process, with a card that can be read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from timm.models import adapt_input_conv
from torch import Tensor

import mpvg
from families import SWIN
from helpers import SMALL, images, perturb, timm_records_arguments
from mpvg.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:converted to scheme")
NARROW: dict[str, Any] = {**SMALL, "depth": 3, "in_chans": 3}
SWIN_SMALL: dict[str, Any] = {**SWIN.shrunken, "in_chans": 3}
Change = Callable[[Any], Any]


def converted(name: str = "vit_tiny_patch16_224", scheme: Any = "mpvg", preserve: bool = True, **changes: Any) -> Any:
    if not timm_records_arguments():
        pytest.skip("this timm does not note what it was told of its own models")
    source = timm.create_model(name, **{**(SWIN_SMALL if "swin" in name else NARROW), **changes})
    return mpvg.convert(source, scheme, preserve=preserve, allow_readout_change=True)


def ours(name: str = "mpvg_deit_tiny_patch16_224", scheme: Any = "mpvg", **changes: Any) -> Any:
    return timm.create_model(name, scheme=scheme, **{**(SWIN_SMALL if "swin" in name else NARROW), **changes})


KINDS: dict[str, Change] = {
    "converted": lambda _: converted(),
    "converted with a class token": lambda _: converted(scheme="pvg_cls"),
    "converted without gates": lambda _: converted(preserve=False),
    "converted with a tag": lambda _: converted("vit_small_patch16_224.augreg_in21k"),
    "converted to what it was": lambda _: converted(scheme="default"),
    "converted by a scheme's text": lambda _: converted(scheme="mpvg:last_norm=1,first_block=true"),
    "converted by a mapping": lambda _: converted(scheme={"base": "mpvg", "last_norm": 2}),
    "converted with registers": lambda _: converted(reg_tokens=2, no_embed_class=True),
    "converted with registers that have rows": lambda _: converted(reg_tokens=2),
    "converted with layer scale": lambda _: converted("deit3_small_patch16_224"),
    "converted from a norm before": lambda _: converted("vit_base_patch16_clip_224"),
    "converted from pooling": lambda _: converted("vit_base_patch16_siglip_224", global_pool="avg"),
    "converted from a norm after pooling": lambda _: converted(global_pool="avg"),
    "converted for grey images": lambda _: converted(in_chans=1),
    "converted Swin": lambda _: converted("swin_tiny_patch4_window7_224"),
    "converted ours": lambda _: mpvg.convert(ours(scheme="gap"), "mpvg"),
    "converted ours, of a sinusoid": lambda _: mpvg.convert(ours(scheme="gap", pos_embed="sincos2d"), "pvg"),
    "created": lambda _: mpvg.create_model("vit_tiny_patch16_224", scheme="lape", **NARROW),
    "ours": lambda _: ours(),
    "ours, of a scheme's text": lambda _: ours(scheme="mpvg:last_norm=1,first_block=true"),
    "ours, of a sinusoid": lambda _: ours(pos_embed="sincos1d"),
    "ours, nano": lambda _: timm.create_model("mpvg_vit_nano", img_size=16, scheme="gap_last"),
    "ours, Swin": lambda _: ours("mpvg_swin_tiny_patch4_window7_224"),
}


def _size(img_size: Any, **changes: Any) -> Change:
    def change(model: Any) -> Any:
        model.set_input_size(img_size=img_size, **changes)
        return model

    return change


def _classes(num_classes: int, *pool: str) -> Change:
    def change(model: Any) -> Any:
        model.reset_classifier(num_classes, *pool)
        return model

    return change


def _moved(scheme: str, name: str, **changes: Any) -> Any:
    return (ours if name.startswith("mpvg_") else converted)(name, scheme=scheme, **changes)


VIT_NAMES, SWIN_NAMES = (
    ("vit_tiny_patch16_224", "mpvg_deit_tiny_patch16_224"),
    ("swin_tiny_patch4_window7_224", "mpvg_swin_tiny_patch4_window7_224"),
)
CHANGES: dict[str, tuple[tuple[str, ...], Change]] = {
    "other classes": ((*VIT_NAMES, *SWIN_NAMES), _classes(3)),
    "no classes": ((*VIT_NAMES, *SWIN_NAMES), _classes(0)),
    "no pooling": ((*VIT_NAMES, *SWIN_NAMES), _classes(0, "")),
    "another size": (VIT_NAMES, _size(24)),
    "a size not square": (VIT_NAMES, _size((16, 24))),
    "another patch size": (VIT_NAMES, _size((16, 24), patch_size=8)),
    "one after the other": (VIT_NAMES, lambda model: _size((24, 16))(_classes(2)(_size(8)(model)))),
    "another window": (SWIN_NAMES, _size((64, 96), window_size=(4, 6))),
    "the same window": (SWIN_NAMES, _size((64, 128), window_size=4)),
    "patches and window": (SWIN_NAMES, _size((64, 32), patch_size=2, window_size=2)),
    "nano at another size": (("mpvg_vit_nano",), _size(32)),
    "nano at a size not square": (("mpvg_vit_nano",), _size((8, 20))),
}


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(actual: Any, expected: Any) -> None:
    """Equal in weights, and in outputs bit by bit."""
    assert type(actual) is type(expected)
    assert actual.scheme == expected.scheme
    assert actual.num_classes == expected.num_classes
    if timm_records_arguments():  # else Swin's may be what it was at first, and only its head knows
        assert actual.global_pool == expected.global_pool
    assert tuple(actual.patch_embed.img_size) == tuple(expected.patch_embed.img_size)
    found, wanted = actual.state_dict(), expected.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    learned = {name for name, parameter in expected.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in actual.named_parameters() if parameter.requires_grad} == learned
    x = images(2, expected.in_chans, *expected.patch_embed.img_size)
    with torch.inference_mode():
        assert torch.equal(actual.eval()(x), expected.eval()(x))


def shared(folder: Path) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True)


def assert_comes_back(model: Any, folder: Path) -> None:
    perturb(model)
    names = [f"class {index}" for index in range(model.num_classes)]
    mpvg.save(model, folder / "first", classes=names)
    again = shared(folder / "first")
    assert_same(again, model)
    config = json.loads((folder / "first" / "config.json").read_text())
    assert config.get("label_names", []) == names
    assert config["model_args"]["scheme"] == str(model.scheme)
    assert tuple(config["pretrained_cfg"]["input_size"]) == (model.in_chans, *model.patch_embed.img_size)
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == model.num_classes
    mpvg.save(again, folder / "second", classes=names)
    assert_same(shared(folder / "second"), model)
    assert json.loads((folder / "second" / "config.json").read_text())["architecture"] == config["architecture"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_comes_back(kind: str, tmp_path: Path) -> None:
    assert_comes_back(KINDS[kind](None), tmp_path)


@pytest.mark.parametrize(("change", "name"), [(change, name) for change in CHANGES for name in CHANGES[change][0]])
def test_what_was_changed_since_comes_back(change: str, name: str, tmp_path: Path) -> None:
    if change == "another window" and not timm_records_arguments():
        pytest.skip("timm 1.0.26 resizes relative positions to square windows only")
    nano = {"img_size": 16} if "nano" in name else {}
    model = timm.create_model(name, **nano) if nano else _moved("mpvg", name)
    assert_comes_back(CHANGES[change][1](model), tmp_path)


def test_another_process_needs_only_the_import(tmp_path: Path) -> None:
    model = perturb(
        mpvg.create_model("vit_tiny_patch16_224", scheme="mpvg:last_norm=1,first_block=true", **NARROW)
    ).eval()
    mpvg.save(model, tmp_path / "saved")
    x = images(2, 3, 16, 16)
    torch.save({"x": x, "y": model(x).detach()}, tmp_path / "expected.pth")
    code = (
        "import timm, mpvg, torch; found = torch.load('expected.pth', weights_only=True); "
        "model = timm.create_model('local-dir:saved', pretrained=True).eval(); "
        "assert torch.equal(model(found['x']), found['y']); print(model.scheme)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(Path(str(one.__file__)).parents[1]) for one in (mpvg, timm)),
    }
    start = [sys.executable, "-c", code]
    run = subprocess.run(start, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "mpvg:first_block=true,last_norm=1", run.stderr


@pytest.mark.parametrize("make", [KINDS["created"], KINDS["ours"], KINDS["ours, Swin"]])
def test_what_is_asked_when_it_is_loaded(make: Change, tmp_path: Path) -> None:
    """Classes, channels and features by timm's mechanism."""
    model = perturb(make(None)).eval()
    mpvg.save(model, tmp_path)
    name = f"local-dir:{tmp_path}"
    other = timm.create_model(name, pretrained=True, num_classes=3, in_chans=1)
    kept = {key for key in state(model) if not key.startswith(("head.", "patch_embed.proj."))}
    assert all(torch.equal(other.state_dict()[key], model.state_dict()[key]) for key in kept)
    expected = adapt_input_conv(1, model.patch_embed.proj.weight)
    assert torch.equal(other.patch_embed.proj.weight, expected)
    assert other(images(2, 1, *model.patch_embed.img_size)).shape == (2, 3)
    features = timm.create_model(name, pretrained=True, features_only=True, out_indices=(0, 1)).eval()
    x = images(2, 3, *model.patch_embed.img_size)
    for one, whole in zip(features(x), model.forward_intermediates(x, [0, 1], intermediates_only=True), strict=True):
        assert torch.equal(one, whole)


STATED = ("Architecture", "Position scheme", "Images", "Classes", "Data", "Licence of the weights")


def read_card(folder: Path) -> tuple[dict[str, Any], dict[str, str], list[list[str]], str]:
    """Return the header, the facts, the table's rows and the whole text of a card."""
    text = (folder / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    facts = dict(re.findall(r"^- \*\*(.+?):\*\* (.+)$", body, re.MULTILINE))
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in body.splitlines() if line.startswith("|")]
    return yaml.safe_load(header), facts, rows, body


@pytest.mark.parametrize("scheme", ["mpvg", "gap"])
def test_the_card(scheme: str, tmp_path: Path) -> None:
    model = mpvg.create_model("vit_tiny_patch16_224.augreg_in21k", scheme=scheme, **NARROW)
    metrics: dict[str, float | str] = {"accuracy on the test split, %": 81.25, "hours": "3 h"}
    mpvg.save(model, tmp_path, classes=[*"abcdefg"], data="ten digits", metrics=metrics, licence="apache-2.0")
    header, facts, rows, body = read_card(tmp_path)
    assert header["license"] == "apache-2.0"
    assert header["library_name"] == "timm"
    assert facts["Architecture"].startswith("vit_tiny_patch16_224.augreg_in21k")
    assert facts["Position scheme"] == f"`{scheme}`"
    assert facts["Classes"] == "7: a, b, c, d, e, f, g"
    assert facts["Data"] == "ten digits"
    assert facts["Licence of the weights"] == "apache-2.0"
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["metric", "value"], ["---", "---"], ["accuracy on the test split, %", "81.25"], ["hours", "3 h"],
    ]  # fmt: skip
    assert "lee2025mpvg" in body
    assert ("yu2023lape" in body) == (scheme == "mpvg")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "apache-2.0"


def test_a_card_of_which_nothing_was_stated(tmp_path: Path) -> None:
    mpvg.save(mpvg.create_model("vit_tiny_patch16_224", scheme="mpvg", **NARROW), tmp_path)
    header, facts, rows, body = read_card(tmp_path)
    assert "license" not in header
    assert "license" not in json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert set(STATED) <= set(facts)
    assert facts["Data"] == facts["Licence of the weights"] == "not stated"
    assert "Metrics: not stated." in body
    assert not rows


def test_odd_names_break_nothing(tmp_path: Path) -> None:
    odd = ["a|b", "two\nlines", "`code`", "---", "# head", "- **Data:** no", "käse 🧀 \ud800"]
    metrics: dict[str, float | str] = {"a|b\nc": "1|2", "`x`": 3.5}
    model = mpvg.create_model("vit_tiny_patch16_224", scheme="mpvg", **NARROW)
    mpvg.save(
        model, tmp_path, classes=odd, data="of\nmany\n---\nlines", metrics=metrics, licence="mine: [all]\n# of it"
    )
    header, facts, rows, body = read_card(tmp_path)
    assert header["license"] == "mine: [all]\n# of it"
    assert facts["Data"] == "of many --- lines"
    assert [len(row) for row in rows] == [2] * 4
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        "# vit_tiny_patch16_224 under position scheme mpvg", "## Metrics", "## Use", "## Citation",
    ]  # fmt: skip
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == odd
    assert shared(tmp_path).pretrained_cfg["label_names"] == odd


def refusal(model: Any, folder: Path, **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        mpvg.save(model, folder / "saved", **arguments)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("saved/*"))
    return str(caught.value)


def test_models_that_nobody_could_build_again(tmp_path: Path) -> None:
    model = ours()
    assert "7 names" not in refusal(model, tmp_path, classes=["one"])
    assert "mpvg.convert" in refusal(timm.create_model("vit_tiny_patch16_224", **NARROW), tmp_path)
    assert "is folded" in refusal(mpvg.fold(ours().eval()), tmp_path)
    cut = ours()
    cut.blocks = type(cut.blocks)(list(cut.blocks)[:2])
    assert "(blocks.2.norm1.weight is the first of 14 tensors that differ)" in refusal(cut, tmp_path)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    assert "NaN" in refusal(model, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: name a folder"):
        mpvg.save(ours(), tmp_path / "file")
