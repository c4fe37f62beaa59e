"""The official implementations' weights and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import mpvg
from helpers import relative
from official import Golden

MODELS = {  # golden file: our model, scheme, and the largest difference from the official logits
    "deit_tiny": ("mpvg_deit_tiny_patch16_224", "default", 1e-8),
    "lape_deit_tiny": ("mpvg_deit_tiny_patch16_224", "lape", 1e-8),
    "swin_tiny_ape": ("mpvg_swin_tiny_patch4_window7_224", "default", 1e-8),
    "ceit_tiny": ("mpvg_ceit_tiny_patch16_224", "default", 1e-8),
    "vit_lite_7_4_32": ("mpvg_vit_lite_7_4_32", "default", 1e-8),
    "t2t_vit_7": ("mpvg_t2t_vit_7", "default", 1e-5),
}


def create(golden: str, scheme: str | None = None, **changes: Any) -> Any:
    name, default, _ = MODELS[golden]
    return timm.create_model(name, scheme=scheme or default, **changes).eval()


@pytest.mark.parametrize("name", MODELS)
def test_official_outputs_are_reproduced(name: str) -> None:
    golden = Golden.read(name)
    model = mpvg.load_official(create(name, dtype=torch.float64), golden.weights)
    with torch.inference_mode():
        logits = model(golden.image)
    difference = (logits - golden.logits).abs().max().item()
    limit = MODELS[name][2] * (golden.logits.abs().max().item() if name == "t2t_vit_7" else 1.0)
    print(f"\n{name}: max|difference| {difference:.1e} of max|logits| {golden.logits.abs().max().item():.2f}")
    assert difference < limit


@pytest.mark.parametrize("name", MODELS)
def test_what_else_lies_in_an_official_checkpoint_is_no_hindrance(name: str) -> None:
    """Wrapped, with DDP's prefix, with integer buffers and masks."""
    golden = Golden.read(name)
    extra = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(7)
        for name in golden.weights
        if "running_mean" in name
    }
    if name == "swin_tiny_ape":
        extra |= {
            "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
            "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.long),
        }
    if name == "t2t_vit_7":
        extra["pos_embed"] = create(name).pos_embed.detach()
    for wrapped in (
        {"model": golden.weights | extra, "epoch": 3},
        {"state_dict_ema": {f"module.{key}": value for key, value in (golden.weights | extra).items()}},
    ):
        model = mpvg.load_official(create(name), wrapped)
        assert torch.equal(model.get_classifier().bias, golden.weights[[*golden.weights][-1]].float())


@pytest.mark.parametrize("name", [name for name in MODELS if name != "lape_deit_tiny"])
def test_an_official_checkpoint_starts_a_layer_wise_model(name: str) -> None:
    golden = Golden.read(name)
    weights = {key: value.float() for key, value in golden.weights.items()}
    model = create(name, "mpvg")
    norms = {key: value.clone() for key, value in model.state_dict().items() if "norm_pos" in key}
    mpvg.load_official(model, weights)
    assert norms
    assert all(torch.equal(model.state_dict()[key], value) for key, value in norms.items())
    default = mpvg.load_official(create(name), weights)
    if default.pos_embed.requires_grad:
        assert torch.equal(model.pos_embed, default.pos_embed[:, int(default.has_class_row) :])
    else:
        assert torch.equal(model.pos_embed, default.pos_embed[:, :-1])


@pytest.mark.parametrize("name", MODELS)
def test_official_files_are_read_by_timms_mechanism(name: str, tmp_path: Path) -> None:
    golden = Golden.read(name)
    torch.save({"model": {key: value.float() for key, value in golden.weights.items()}}, tmp_path / "official.pth")
    from_file = create(name, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "official.pth")})
    expected = mpvg.load_official(create(name), golden.weights).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in from_file.state_dict().items())


def test_another_size_resamples_what_depends_on_it() -> None:
    golden = Golden.read("swin_tiny_ape")
    model = mpvg.load_official(create("swin_tiny_ape", img_size=256, window_size=8), golden.weights)
    assert model.pos_embed.shape == (1, 64, 64, 96)
    assert model.layers[0].blocks[0].attn.relative_position_bias_table.shape == (225, 3)


def _without(name: str, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in Golden.read(name).weights.items() if key not in keys}


@pytest.mark.parametrize(
    ("golden", "model", "changes", "message"),
    [
        ("deit_tiny", "swin_tiny_ape", {}, r"lacks|has .*which the model lacks"),
        ("deit_tiny", "ceit_tiny", {}, r"lacks"),
        ("deit_tiny", "deit_tiny", {"num_classes": 10}, r"head.*\(1000, 192\).*\(10, 192\).*reset_classifier"),
        ("deit_tiny", "deit_tiny", {"depth": 6}, r"'blocks\.10.*which the model lacks"),
        ("lape_deit_tiny", "deit_tiny", {}, r"'blocks\.0\.norm_pos.*which the model lacks"),
    ],
)
def test_weights_that_do_not_fit_are_refused(golden: str, model: str, changes: dict[str, Any], message: str) -> None:
    target = create(model, **changes)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        mpvg.load_official(target, Golden.read(golden).weights)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_a_half_of_the_position_norms_is_refused() -> None:
    weights = _without("lape_deit_tiny", "blocks.3.pe_norm.weight")
    with pytest.raises(ValueError, match=r"lacks 'blocks\.3\.norm_pos\.weight'"):
        mpvg.load_official(create("lape_deit_tiny"), weights)


def test_models_of_others_are_refused() -> None:
    with pytest.raises(ValueError, match="ResNet"):
        mpvg.load_official(timm.create_model("resnet18"), {})


def test_a_wrong_scheme_would_be_noticed() -> None:
    golden = Golden.read("lape_deit_tiny")
    right = mpvg.load_official(create("lape_deit_tiny", dtype=torch.float64), golden.weights)
    wrong = mpvg.load_official(create("lape_deit_tiny", "lape:hierarchical=false", dtype=torch.float64), golden.weights)
    with torch.inference_mode():
        assert relative(wrong(golden.image), right(golden.image)) > 1e-3
