"""ViT-Adapter over other trunks: which can be one, their weights, and the words for those that cannot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

import mpvg
from helpers import images, perturb
from mpvg.errors import UserError
from mpvg.models.mpvg_vit_adapter import STRIDES, ViTAdapter
from mpvg.models.trunk_weights import load_trunk, read_trunk
from tables import DOCS
from test_dense_adapter import SMALL, SMALL_TRUNK, TINY, build


def test_saved_weights_come_back(tmp_path: Path) -> None:
    """By timm's mechanism and ours, at another grid and with other channels."""
    model = build(window_size=3)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "adapter.safetensors")
    same = mpvg.create_model(TINY, scheme="mpvg", pretrained=tmp_path / "adapter.safetensors", **SMALL)
    overlay = {"file": str(tmp_path / "adapter.safetensors")}
    by_timm = timm.create_model(TINY, scheme="mpvg", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
    for other in (same, by_timm):
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
    changed = {**SMALL, "img_size": 96, "in_chans": 3}
    wide = mpvg.create_model(TINY, scheme="mpvg", pretrained=tmp_path / "adapter.safetensors", **changed)
    assert wide.trunk.pos_embed.shape == (1, 36, 24)
    assert wide(images(1, 3, 96, 96))[0].isfinite().all()
    with pytest.raises(UserError, match="ViTAdapter is a backbone"):
        mpvg.save(model, tmp_path / "saved")


def test_the_package_offers_what_it_names() -> None:
    import mpvg.dense

    for name in mpvg.dense.__all__:
        assert getattr(mpvg.dense, name).__name__ == name
    with pytest.raises(AttributeError, match="'build_maskrcnn'"):
        mpvg.dense.build_maskrcnn  # noqa: B018


def test_any_plain_vit_is_a_trunk() -> None:
    x = images(1, 3, 64, 96)
    nano = timm.create_model(
        "mpvg_vit_nano", scheme="mpvg", img_size=32, dynamic_img_size=True, num_classes=0, final_norm=False
    )  # patches of 4 pixels
    augreg = mpvg.create_model(
        "vit_tiny_patch16_224", scheme="pvg", dynamic_img_size=True, num_classes=0, embed_dim=24, depth=4, num_heads=3
    )
    for trunk in (nano, augreg):
        model = ViTAdapter(trunk, deform_heads=3, prior_width=8)
        assert [tuple(one.shape[2:]) for one in model(x)] == [(64 // stride, 96 // stride) for stride in STRIDES]


@pytest.mark.parametrize("scheme", ["default", "gap", "lape", "mpvg"])
def test_weights_of_a_classifier_start_the_trunk(scheme: str, tmp_path: Path) -> None:
    source = perturb(timm.create_model("mpvg_deit_tiny_patch16_224", scheme=scheme, num_classes=7, **SMALL_TRUNK))
    torch.save({"model": source.state_dict()}, tmp_path / "classifier.pth")
    model = build(scheme, img_size=96)
    told = load_trunk(model, tmp_path / "classifier.pth")
    assert any("Last LN is left out" in word for word in told)
    own, given = model.trunk.state_dict(), source.state_dict()
    for name, value in own.items():
        if name.endswith("gamma"):
            assert (value == 1).all()
        elif name == "pos_embed":
            assert value.shape[1] == 36
        else:
            assert torch.equal(value, given[name]), name
    same_size = build(scheme)
    load_trunk(same_size, source.state_dict())
    assert torch.equal(same_size.trunk.pos_embed, source.pos_embed[:, int(source.has_class_row) :])


def test_the_code_in_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = re.findall(r"```python\n(.*?)```", (DOCS / "dense.md").read_text(encoding="utf-8"), re.S)
    classifier = timm.create_model("mpvg_deit_tiny_patch16_224", scheme="mpvg")
    torch.save(classifier.state_dict(), tmp_path / "deit.ckpt")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, "dense.md", "exec"), found)
    assert found["told"] == ["the Last LN is left out"]
    assert torch.equal(found["detector"].backbone.body.trunk.pos_embed, classifier.pos_embed)
    assert found["maps"].feature_info.reduction() == list(STRIDES)


def test_weights_with_gates_and_scales(tmp_path: Path) -> None:
    plain = timm.create_model("vit_tiny_patch16_224", init_values=0.1, num_classes=7, **SMALL_TRUNK)
    source = perturb(mpvg.convert(plain, "mpvg", allow_readout_change=True))
    weights = source.state_dict()
    assert read_trunk(weights).arguments == {"preserve": True}
    model = build(**read_trunk(weights).arguments)
    load_trunk(model, weights)
    assert torch.equal(model.trunk.blocks[2].ls1.gamma, source.blocks[2].ls1.gamma)
    assert torch.equal(model.trunk.blocks[2].ls_pos.gamma, source.blocks[2].ls_pos.gamma)


def test_weights_of_another_scheme_are_refused() -> None:
    source = timm.create_model("mpvg_deit_tiny_patch16_224", scheme="mpvg", **SMALL_TRUNK)
    with pytest.raises(UserError, match=r"blocks\.1\.norm_pos.*another scheme: use scheme='pvg'"):
        load_trunk(build("gap"), source.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 5}, "num_classes=5.*no head.*build_mask_rcnn"),
        ({"vit_maps": "all"}, "vit_maps='all' is unknown"),
        ({"window_size": 0}, "window_size=0"),
        ({"interactions": 2, "vit_maps": "each"}, "interactions=2 with vit_maps='each'"),
        ({"interactions": 9}, "interactions=9 around 4 blocks"),
        ({"deform_heads": 5}, "no 5 equal heads"),
        ({"trunk": "mpvg_vit_lite_7_4_32", "window_size": 4}, "NormedStreamBlock with Attention has no windows"),
        ({"trunk": "mpvg_swin_tiny_patch4_window7_224"}, "is no plain ViT"),
        ({"trunk": "beit_base_patch16_224"}, "'beit_base_patch16_224' is not converted"),
        ({"trunk": "deit_tinny_patch16_224"}, "is unknown.*did you mean 'deit_tiny_patch16_224'"),
        ({"scheme": "mpvgg"}, "'mpvgg' is unknown"),
        ({"patch_size": 12, "img_size": 72}, "patches of 12 x 12 pixels"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        timm.create_model(TINY, **{**SMALL, **options})


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        ({"scheme": "default", "dynamic_img_size": True}, "1 class or register tokens"),
        ({"scheme": "mpvg"}, "dynamic_img_size=True"),
    ],
)
def test_bad_trunks(trunk: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTAdapter(timm.create_model("mpvg_deit_tiny_patch16_224", **SMALL_TRUNK, **trunk))
    with pytest.raises(ValueError, match="trunk ResNet"):
        ViTAdapter(timm.create_model("resnet10t"))
