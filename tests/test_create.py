"""`mpvg.create_model`: names, weights of others, other sizes, classes and channels, each against timm's own."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv, save_for_hf
from torch import Tensor

import mpvg
from families import SWIN
from helpers import SMALL, images, perturb, relative, timm_records_arguments
from mpvg.checkpoint import Card, save_safetensors
from mpvg.cli import main
from mpvg.data.preprocessing import Preprocessing
from mpvg.errors import UserError
from test_data import save as save_data

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # what is not taken over; tested on its own
VIT = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {**SMALL, "depth": 3, "in_chans": 3}
SWINS: dict[str, Any] = {**SWIN.shrunken, "in_chans": 3}


def theirs(name: str = VIT, **changes: Any) -> Any:
    """Return a shrunken, perturbed model of timm."""
    return perturb(timm.create_model(name, **{**(SWINS if "swin" in name else TINY), **changes})).eval()


def create(pretrained: Any, scheme: Any = "mpvg", name: str = VIT, **changes: Any) -> Any:
    sizes = SWINS if "swin" in name else TINY
    return mpvg.create_model(name, scheme=scheme, pretrained=pretrained, **{**sizes, **changes}).eval()


def write(path: Path, content: Mapping[str, Any]) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in content.items()}, path)
    else:
        torch.save(dict(content), path)
    return path


@pytest.fixture
def source() -> Any:
    return theirs()


@pytest.fixture
def file(source: Any, tmp_path: Path) -> Path:
    return write(tmp_path / "weights.safetensors", source.state_dict())


def equal(actual: Any, expected: Mapping[str, Tensor], *, but: tuple[str, ...] = ()) -> bool:
    """Whether a model has these weights, all but those of the given beginnings."""
    own = {name: value for name, value in actual.state_dict().items() if not name.startswith(but)}
    wanted = {name: value for name, value in expected.items() if not name.startswith(but)}
    return own.keys() == wanted.keys() and all(torch.equal(own[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("scheme", ["mpvg", "default", "lape", {"base": "mpvg", "last_norm": 2}, mpvg.SCHEMES["gap"]])
@pytest.mark.parametrize(
    "name",
    [
        VIT,
        f"{VIT}.augreg_in21k",
        "vit_small_patch16_224_in21k",  # as timm called it before it had tags
        "deit_small_patch16_224",
        "mpvg_deit_tiny_patch16_224",
    ],
)
def test_names_and_schemes(name: str, scheme: Any) -> None:
    model = create(False, scheme, name)
    assert model.scheme == mpvg.PositionScheme.parse(scheme)
    assert model.training is False
    assert model(images(2, 3, 16, 16)).shape == (2, 7)
    assert not any("ls_pos" in key for key in model.state_dict())
    if not name.startswith("mpvg_"):
        assert timm.create_model(name, **TINY).pretrained_cfg.get("tag") == model.pretrained_cfg.get("tag")


def wrapped(prefix: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in weights.items()}


WRAPPINGS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "bare": lambda weights: weights,
    "model": lambda weights: {"model": weights, "epoch": 3},
    "state_dict": lambda weights: {"state_dict": weights, "optimizer": {"lr": 0.1}},
    "average": lambda weights: {"state_dict": {"a": torch.ones(1)}, "state_dict_ema": weights},
    "parallel": lambda weights: wrapped("module.", weights),
    "compiled": lambda weights: {"model": wrapped("_orig_mod.", weights)},
    "both": lambda weights: {"state_dict_ema": wrapped("module._orig_mod.", weights)},
    "Lightning": lambda weights: {"state_dict": wrapped("model.", weights), "epoch": 1},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_files_of_pytorch(wrapping: str, suffix: str, source: Any, tmp_path: Path) -> None:
    path = write(tmp_path / f"weights{suffix}", WRAPPINGS[wrapping](source.state_dict()))
    assert equal(create(str(path) if suffix == ".pt" else path, "default"), source.state_dict())


def test_files_of_safetensors_and_of_timms_training_script(source: Any, file: Path, tmp_path: Path) -> None:
    assert equal(create(file, "default"), source.state_dict())
    options = {"state_dict": source.state_dict(), "args": Namespace(lr=0.1)}
    assert equal(create(write(tmp_path / "last.pth.tar", options), "default"), source.state_dict())


def test_folders(source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_for_hf(source, tmp_path / "timm", model_args=dict(TINY), safe_serialization="both")
    assert equal(create(tmp_path / "timm", "default"), source.state_dict())
    (tmp_path / "timm" / "model.safetensors").unlink()
    assert equal(create(tmp_path / "timm", "default"), source.state_dict())
    ours = create(tmp_path / "timm", "default")
    mpvg.save(ours, tmp_path / "ours")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert equal(create("~/ours", "default"), source.state_dict())
    shutil.move(tmp_path / "ours" / "model.safetensors", tmp_path / "ours" / "anything.safetensors")
    assert equal(create("~/ours", "default"), source.state_dict())


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    data, out = save_data(tmp_path / "set.npz"), tmp_path / "out"
    assert main(["fit", "--data", data, "--out", str(out), "--trainer.max_epochs=1"]) == 0
    best = mpvg.load(out / "best.safetensors").model
    size = {"img_size": best.patch_embed.img_size, "in_chans": best.in_chans, "num_classes": best.num_classes}
    for path in (out, out / "best.safetensors"):
        model = mpvg.create_model("mpvg_vit_nano", scheme=best.scheme, pretrained=path, **size)
        assert equal(model, best.state_dict())


def test_a_class_token_is_dropped_with_its_row(source: Any, file: Path) -> None:
    """timm's own blocks on patches and the table's other rows, then their mean."""
    x = images(2, 3, 16, 16)
    for name in (VIT, "mpvg_deit_tiny_patch16_224"):
        for scheme in ("gap", "mpvg"):  # gates let nothing of mpvg pass at first
            with torch.inference_mode():
                tokens = source.patch_embed(x) + source.pos_embed[:, 1:]
                for block in source.blocks:
                    tokens = block(tokens)
                expected = source.head(source.norm(tokens).mean(1))
                actual = create(file, scheme, name)(x)
            assert relative(actual, expected) < 1e-5
    ungated = create(file, preserve=False)
    assert relative(ungated(x), expected) > 1e-3


def test_196_rows_are_no_class_token_and_195(tmp_path: Path) -> None:
    small = {**TINY, "img_size": 56}  # 14 x 14 patches
    kept = theirs(**small).state_dict()
    without = {name: value for name, value in kept.items() if name != "cls_token"} | {
        "pos_embed": kept["pos_embed"][:, 1:]
    }
    for scheme, name in (("gap", VIT), ("mpvg", "mpvg_deit_tiny_patch16_224")):
        model = create(write(tmp_path / "w.pth", without), scheme, name, img_size=56)
        assert torch.equal(model.pos_embed, without["pos_embed"])
    nearly = (52, 60)  # 13 x 15 patches are 195
    model = create(write(tmp_path / "w.pth", without), "gap", img_size=nearly)
    assert torch.equal(model.pos_embed, resample_abs_pos_embed(without["pos_embed"], (13, 15), (14, 14), 0))
    bare = theirs(**small, no_embed_class=True).state_dict()  # a class token without a row of its own
    model = create(write(tmp_path / "w.pth", bare), "gap", img_size=56)
    assert torch.equal(model.pos_embed, bare["pos_embed"])


@pytest.mark.parametrize("size", [24, (24, 12), (8, 40)])
@pytest.mark.parametrize("scheme", ["default", "mpvg", "lape"])
def test_another_size(scheme: str, size: Any, source: Any, file: Path) -> None:
    model = create(file, scheme, img_size=size)
    grid = (size // 4,) * 2 if isinstance(size, int) else (size[0] // 4, size[1] // 4)
    first = int(model.has_class_token)
    rows = source.pos_embed if first else source.pos_embed[:, 1:]
    resampled = resample_abs_pos_embed(rows, grid, (4, 4), num_prefix_tokens=first)
    assert torch.equal(model.pos_embed, resampled)
    if scheme == "default":
        own = timm.create_model(
            VIT,
            pretrained=True,
            pretrained_cfg_overlay={"file": str(file), "num_classes": 7, "custom_load": False},
            **{**TINY, "img_size": size},
        ).eval()
        assert equal(model, own.state_dict())
        x = images(2, 3, grid[0] * 4, grid[1] * 4)
        assert relative(model(x), own(x)) < 1e-5


@pytest.mark.parametrize("how", ["local-dir of timm", "folder", "name", "file of fit"])
def test_weights_of_a_size_not_square_at_another(how: str, tmp_path: Path) -> None:
    """4 x 9 patches are 36, and so are 6 x 6: only what is written beside the weights can tell."""
    source = perturb(create(False, img_size=(16, 36)))
    mpvg.save(source, tmp_path / "saved")
    seen = Preprocessing((16, 36), 3, (0.5,) * 3, (0.2,) * 3)
    card = Card(VIT, "mpvg", {}, seen, tuple("abcdefg"), {})
    save_safetensors(tmp_path / "fit.safetensors", card, source)
    resampled = {}
    for grid in ((6, 6), (2, 5), (4, 9)):
        size = (grid[0] * 4, grid[1] * 4)
        if how == "local-dir of timm":
            model = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True, img_size=size)
        elif how == "folder":
            model = create(tmp_path / "saved", img_size=size)
        elif how == "name":
            model = mpvg.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True, img_size=size)
        else:
            model = create(tmp_path / "fit.safetensors", img_size=size)
        resampled[grid] = torch.equal(model.pos_embed, resample_abs_pos_embed(source.pos_embed, grid, (4, 9), 0))
    assert resampled == dict.fromkeys(resampled, True)


@pytest.mark.parametrize("scheme", ["default", "mpvg"])
@pytest.mark.parametrize("classes", [3, 0])
def test_other_classes(classes: int, scheme: str, file: Path) -> None:
    model, whole = create(file, scheme, num_classes=classes), create(file, scheme)
    assert equal(model, whole.state_dict(), but=("head.",))
    x = images(2, 3, 16, 16)
    assert torch.equal(model.forward_features(x), whole.forward_features(x))
    assert model(x).shape == (2, classes or 24)
    if classes:
        torch.manual_seed(0)
        fresh = create(False, scheme, num_classes=classes)
        assert model.head.weight.std() < 3 * fresh.head.weight.std() + 0.1


def test_a_head_that_the_file_lacks(source: Any, tmp_path: Path) -> None:
    weights = {name: value for name, value in source.state_dict().items() if not name.startswith("head.")}
    path = write(tmp_path / "w.pth", weights)
    with pytest.warns(UserWarning, match="the head is new and untrained"):
        model = create(path, "default")
    assert equal(model, source.state_dict(), but=("head.",))


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(channels: int, source: Any, file: Path) -> None:
    for name, scheme in ((VIT, "default"), ("mpvg_deit_tiny_patch16_224", "mpvg")):
        model = create(file, scheme, name, in_chans=channels)
        kernel = adapt_input_conv(channels, source.patch_embed.proj.weight)
        assert torch.equal(model.patch_embed.proj.weight, kernel)
    own = timm.create_model(
        VIT,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file), "num_classes": 7, "custom_load": False},
        **{**TINY, "in_chans": channels},
    )
    assert equal(create(file, "default", in_chans=channels), own.state_dict())


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("scheme", ["default", "pvg_cls"])
def test_registers(scheme: str, rows: bool, tmp_path: Path) -> None:
    extra: dict[str, Any] = {"reg_tokens": 2, "no_embed_class": not rows}
    source = theirs(**extra)
    assert source.pos_embed.shape[1] == 16 + 3 * rows
    path = write(tmp_path / "w.safetensors", source.state_dict())
    expected = mpvg.convert(source, scheme)
    actual = create(path, scheme, **extra)
    assert equal(actual, expected.state_dict())
    x = images(2, 3, 16, 16)
    with torch.inference_mode():
        assert relative(actual(x), source(x)) < 1e-5


@pytest.mark.parametrize("name", [VIT, "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("scheme", ["mpvg", "gap", "pvg"])
@pytest.mark.parametrize("preserve", [None, True, False])
def test_a_converted_model_is_one_created_from_its_source(
    name: str, scheme: str, preserve: Any, tmp_path: Path
) -> None:
    source = theirs(name)
    path = write(tmp_path / "w.safetensors", source.state_dict())
    expected = mpvg.convert(source, scheme, preserve=preserve is not False, allow_readout_change=True)
    actual = create(path, scheme, name, preserve=preserve)
    random = name != VIT and preserve is False  # the table that timm's Swin lacks
    assert equal(actual, expected.state_dict(), but=("pos_embed",) if random else ())
    if preserve is not False:
        ours = {VIT: "mpvg_deit_tiny_patch16_224"}.get(name, "mpvg_" + name)
        assert equal(create(path, scheme, ours, preserve=preserve), expected.state_dict())
    gates = [key for key in actual.state_dict() if "ls_pos" in key]
    assert bool(gates) == (preserve is not False and scheme != "gap")


@pytest.mark.parametrize("form", ["file", "state_dict"])
@pytest.mark.parametrize("scheme", ["mpvg", "default"])
def test_pretrained_goes_timms_way(scheme: str, form: str, source: Any, file: Path) -> None:
    overlay = {"num_classes": 7, "custom_load": False, form: str(file) if form == "file" else source.state_dict()}
    actual = create(True, scheme, pretrained_cfg_overlay=overlay)
    expected = mpvg.convert(source, scheme, allow_readout_change=True)
    assert equal(actual, expected.state_dict())
    other = create(True, scheme, pretrained_cfg_overlay=overlay, num_classes=2, in_chans=1, img_size=24)
    own = timm.create_model(
        VIT,
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        **{**TINY, "num_classes": 2, "in_chans": 1, "img_size": 24},
    )
    expected = mpvg.convert(own, scheme, allow_readout_change=True)
    assert equal(other, expected.state_dict(), but=("head.",))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("scheme", ["mpvg", "pvg", "lape_gap", "gap_last"])
def test_layer_wise_weights_come_back(scheme: str, gated: bool, source: Any, tmp_path: Path) -> None:
    model = perturb(mpvg.convert(source, scheme, preserve=gated, allow_readout_change=True))
    path = write(tmp_path / "w.safetensors", model.state_dict())
    for name in (VIT, "mpvg_deit_tiny_patch16_224"):
        again = create(path, scheme, name)
        assert equal(again, model.state_dict())
        assert torch.equal(again(images(2, 3, 16, 16)), model(images(2, 3, 16, 16)))


def test_features_only(file: Path) -> None:
    features = create(file, features_only=True, out_indices=(0, 2))
    whole = create(file)
    x = images(2, 3, 16, 16)
    expected = whole.forward_intermediates(x, [0, 2], intermediates_only=True)
    assert all(torch.equal(one, other) for one, other in zip(features(x), expected, strict=True))


def test_what_is_not_taken_over_is_told(file: Path) -> None:
    with pytest.warns(UserWarning, match="the head") as told:
        create(file, num_classes=3)
    (text,) = [str(warning.message) for warning in told if str(file) in str(warning.message)]
    assert "the class token is dropped, and the mean over the patch tokens is read out; the head is new" in text


@pytest.mark.skipif(not timm_records_arguments(), reason="this timm does not tell what its own models were told")
def test_a_published_folder_as_the_base(source: Any, tmp_path: Path) -> None:
    """The folder need not be there any more when the converted model is built again."""
    save_for_hf(source, tmp_path / "base", model_args=dict(TINY))
    name = f"local-dir:{tmp_path / 'base'}"
    model = perturb(mpvg.create_model(name, scheme="mpvg", pretrained=True))
    plain = mpvg.create_model(name, scheme="default", pretrained=True)
    assert equal(plain, source.state_dict())
    assert create(False, num_classes=3).num_classes == 3
    mpvg.save(model, tmp_path / "saved")
    shutil.rmtree(tmp_path / "base")
    assert equal(timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True), model.state_dict())
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()
    again = mpvg.create_model(f"local-dir:{tmp_path / 'saved'}", scheme="mpvg", pretrained=True)
    assert equal(again, model.state_dict())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tinny_patch16_224", "unknown.*did you mean 'vit_tiny_patch16_224'"),
        ("resnet50", "'resnet50' is not converted"),
        ("vit_tiny_patch16_224.augreg_in22k", "unknown tag.*did you mean 'augreg_in21k'"),
        ("mpvg_vit_nano.some", "unknown tag: leave it out"),
        ("mpvg", "unknown"),
        ("", "unknown"),
        ("local-dir:nowhere", "nowhere has no configuration"),
        ("far:away", "no known source"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mpvg.create_model(name)


@pytest.mark.parametrize("pretrained", ["true", "False", "", None, 1])
def test_pretrained_that_is_no_path(pretrained: Any) -> None:
    with pytest.raises(UserError, match=r"is no path: use True, False or the path"):
        mpvg.create_model(VIT, pretrained=pretrained)


def test_nobody_has_weights_of_ours() -> None:
    with pytest.raises(UserError, match="nobody has published weights of mpvg_vit_nano"):
        mpvg.create_model("mpvg_vit_nano", pretrained=True)
