"""ViT-Adapter: its official outputs, its parts against plain loops, and the battery that a backbone of maps passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor
from torch.nn.functional import interpolate, layer_norm

import mpvg
from families import ADAPTERS
from helpers import images, perturb, relative
from mpvg import SCHEMES, fold
from mpvg.models.mpvg_vit_adapter import STRIDES, WindowBlock
from official import GOLDEN, by_rule

TINY = ADAPTERS[0]
SMALL_TRUNK: dict[str, Any] = {"img_size": 64, "embed_dim": 24, "depth": 4, "num_heads": 3, "in_chans": 2}
SMALL: dict[str, Any] = {**SMALL_TRUNK, "deform_heads": 3, "prior_width": 8, "drop_path_rate": 0.0}
COUNT = 7_966_448  # without layer-wise delivery
A_NORM = 2 * 192


def build(scheme: str = "mpvg", name: str = TINY, **changes: Any) -> Any:
    """Return a shrunken, perturbed adapter in eval mode."""
    torch.manual_seed(0)
    return perturb(timm.create_model(name, scheme=scheme, **{**SMALL, **changes}), std=0.1).eval()


# windows


def test_windows_see_themselves_and_zeros() -> None:
    """Each window alone, its missing tokens with queries, keys and values of zero."""
    block = build(window_size=3).trunk.blocks[0]
    block.__class__ = WindowBlock
    block.window_size = 3
    grid, width = (4, 5), SMALL["embed_dim"]
    x, pos = images(2, 20, width), images(1, 20, width, seed=1)
    a = block.norm1(x) + pos
    qkv = torch.zeros(2, 6, 6, 3 * width)
    qkv[:, :4, :5] = block.attn.qkv(a).unflatten(1, grid)
    found = torch.zeros(2, 6, 6, width)
    for top in (0, 3):
        for left in (0, 3):
            of_window = qkv[:, top : top + 3, left : left + 3].reshape(2, 9, 3, 3, width // 3)
            q, k, v = of_window.permute(2, 0, 3, 1, 4)
            attended = ((q @ k.transpose(-2, -1)) * (width // 3) ** -0.5).softmax(-1) @ v
            found[:, top : top + 3, left : left + 3] = attended.transpose(1, 2).reshape(2, 3, 3, width)
    expected = x + block.ls1(block.attn.proj(found[:, :4, :5].reshape(2, 20, width)))
    expected = expected + block.ls2(block.mlp(block.norm2(expected)))
    assert relative(block(x, pos, None, grid), expected) < 1e-5
    assert relative(block(x, None, None, grid), expected) > 1e-3  # positions reach the windows


def test_a_window_of_the_whole_grid_is_global_attention() -> None:
    x = images(1, 2, 64, 64)
    for mine, other in zip(build(window_size=4)(x), build()(x), strict=True):
        assert relative(mine, other) < 1e-5
    assert [type(block) is WindowBlock for block in build(window_size=4, depth=6, interactions=3).trunk.blocks] == [
        True, False, True, False, True, False,
    ]  # fmt: skip


# the official implementation


@pytest.mark.parametrize(("name", "options"), [("det", {"window_size": 14}), ("seg", {"vit_maps": "each"})])
def test_official_outputs(name: str, options: dict[str, Any]) -> None:
    found: dict[str, Any] = json.loads((GOLDEN / f"vit_adapter_tiny_{name}_1.json").read_text())
    weights = {key: by_rule(key, tuple(shape), found["seed"]) for key, shape in found["keys"].items()}
    image = np.random.Generator(np.random.PCG64(found["seed"])).standard_normal(found["input"])
    model = mpvg.load_official(timm.create_model(TINY, scheme="gap", **options), weights).eval()
    with torch.inference_mode():
        maps = model(torch.from_numpy(image).float())
        wrong = model(torch.from_numpy(image).float().flip(3))
    assert [list(one.shape) for one in maps] == [one["shape"] for one in found["outputs"]]
    for one, other, expected in zip(maps, wrong, found["outputs"], strict=True):
        values = torch.tensor(expected["values"])
        assert relative(one.flatten()[expected["at"]], values) < 1e-5
        assert one.mean().item() == pytest.approx(expected["mean"], abs=1e-5)
        assert one.std().item() == pytest.approx(expected["std"], rel=1e-5)
        assert relative(other.flatten()[expected["at"]], values) > 1e-2


def test_a_table_without_a_class_row_is_read_as_it_is() -> None:
    found: dict[str, Any] = json.loads((GOLDEN / "vit_adapter_tiny_seg_1.json").read_text())
    weights = {key: by_rule(key, tuple(shape), found["seed"]) for key, shape in found["keys"].items()}
    with_row, without = (timm.create_model(TINY, scheme="gap", vit_maps="each") for _ in range(2))
    mpvg.load_official(with_row, weights)
    mpvg.load_official(without, {**weights, "pos_embed": weights["pos_embed"][:, 1:]})
    assert torch.equal(with_row.trunk.pos_embed, without.trunk.pos_embed)
    del weights["pos_embed"]
    with pytest.raises(ValueError, match=r"lacks 'trunk\.pos_embed'"):
        mpvg.load_official(without, weights)


def test_official_weights_of_another_size_are_refused() -> None:
    found: dict[str, Any] = json.loads((GOLDEN / "vit_adapter_tiny_det_1.json").read_text())
    weights = {key: torch.zeros(shape) for key, shape in found["keys"].items() if "extra_" not in key}
    with pytest.raises(ValueError, match=r"lacks 'interactions\.3\.extra_extractors\.0"):
        mpvg.load_official(timm.create_model(TINY, scheme="gap"), weights)


@pytest.mark.parametrize(
    ("scheme", "extra"),
    [("default", 0), ("gap", 0), ("lape", 12 * A_NORM), ("pvg", 11 * A_NORM), ("mpvg", 11 * A_NORM)],
)
def test_parameters(scheme: str, extra: int) -> None:
    model = timm.create_model(TINY, scheme=scheme)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNT + extra
    assert sum(parameter.numel() for parameter in model.spatial_prior.parameters()) == 1_171_520
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in model.interactions]
    assert counts == [225_072, 225_072, 225_072, 441_696]


def test_parameters_of_a_last_norm() -> None:
    model = timm.create_model(TINY, scheme="mpvg", last_norm=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNT + 13 * A_NORM  # LN and its LN' with it


# positions


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_positions_are_resized_first(scheme: str) -> None:
    """The table is resampled without antialiasing, and then passes the norms one after the other."""
    model, grid = build(scheme), (6, 3)
    trunk, plan = model.trunk, model.trunk.plan
    table = trunk.pos_embed.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    initial = interpolate(table, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    found = model.positions(grid)
    torch.testing.assert_close(found.initial, initial)
    previous = initial
    for block, source, position in zip(trunk.blocks, plan.blocks, found.blocks, strict=True):
        assert (source is None) == (position is None)
        if source is not None:
            norm = block.norm_pos
            given = previous if source == "previous" else initial
            previous = layer_norm(given, (24,), norm.weight, norm.bias, eps=norm.eps)
            torch.testing.assert_close(position, previous)
    assert found.last is None
    assert plan.join_input == SCHEMES[scheme].join_input
    assert not trunk.has_class_token
    assert model.scheme is trunk.scheme
    assert model.scheme.layerwise == SCHEMES[scheme].layerwise


@pytest.mark.parametrize("scheme", ["gap", "lape", "mpvg"])
def test_with_shut_gates_the_trunk_is_the_plain_vit(scheme: str) -> None:
    """What injectors would add is left out: the maps' part that comes from the trunk is the classifier's."""
    model, x = build(scheme, vit_maps="each"), images(1, 2, 96, 64)
    for interaction in model.interactions:
        torch.nn.init.zeros_(interaction.injector.gamma)
    _, tokens = model._exchange(x)
    expected = model.trunk.forward_intermediates(x, intermediates_only=True)
    for one, wanted in zip(tokens, expected, strict=True):
        assert relative(one, wanted) < 1e-5


@pytest.mark.parametrize("scheme", ["gap", "mpvg"])
def test_a_last_norm_and_its_position_reach_the_maps(scheme: str) -> None:
    model, x = build(scheme, last_norm=True, vit_maps="each"), images(1, 2, 96, 64)
    with torch.no_grad():
        _, tokens = model._exchange(x)
        norm, model.trunk.norm = model.trunk.norm, torch.nn.Identity()
        _, plain = model._exchange(x)
        model.trunk.norm = norm
    last = model.positions((6, 4)).last
    assert (last is None) == (scheme == "gap")
    for one, before in zip(tokens, plain, strict=True):
        expected = norm(before.flatten(2).transpose(1, 2)) + (0 if last is None else last)
        assert relative(one.flatten(2).transpose(1, 2), expected) < 1e-5


# the battery


@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("options", [{}, {"window_size": 3, "vit_maps": "each", "last_norm": True}])
def test_maps_and_gradients(scheme: str, options: dict[str, Any]) -> None:
    if "last_norm" in options and scheme == "gap_last":
        options = {**options, "window_size": None}
    model, x = build(scheme, **options).train(), images(2, 2, 96, 64)
    maps = model(x)
    assert [tuple(one.shape) for one in maps] == [(2, 24, 96 // stride, 64 // stride) for stride in STRIDES]
    sum((one * images(*one.shape, seed=i)).sum() for i, one in enumerate(maps)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        # a constant before a batch norm vanishes, and none passes fc1 or up but on that way
        vanishes = name in ("up.bias", "spatial_prior.fc1.bias")
        assert vanishes or parameter.grad.abs().max() > 0, name


def test_gradients_at_the_start() -> None:
    """Shut gates let nothing back into the injectors but to the gates, and queries wait for their layers."""
    torch.manual_seed(0)
    model = timm.create_model(TINY, **SMALL).train()
    sum(one.square().mean() for one in model(images(2, 2, 96, 64))).backward()
    dead = {name for name, parameter in model.named_parameters() if parameter.grad.abs().max() == 0}
    injectors = {name for name, _ in model.named_parameters() if ".injector." in name and not name.endswith(".gamma")}
    # queries choose no places yet: the layers that would read them start at zero
    queries = {name for name, _ in model.named_parameters() if ".query_norm." in name}
    assert injectors | queries <= dead <= injectors | queries | {"up.bias", "spatial_prior.fc1.bias"}


@pytest.mark.parametrize("size", [(256, 320), (1024, 256), (384, 1024), (512, 512), (1, 300), (77, 33)])
def test_any_size(size: tuple[int, int]) -> None:
    model, x = build(window_size=14), images(1, 2, *size)
    padded = images(1, 2, size[0] + -size[0] % 32, size[1] + -size[1] % 32).zero_()
    padded[:, :, : size[0], : size[1]] = x
    with torch.no_grad():
        for one, whole, stride in zip(model(x), model(padded), STRIDES, strict=True):
            height, width = -(-size[0] // stride), -(-size[1] // stride)
            assert one.shape == (1, 24, height, width)
            assert torch.equal(one, whole[:, :, :height, :width])


def test_features_only() -> None:
    whole = build()
    features = timm.create_model(TINY, features_only=True, out_indices=(1, 3), **SMALL).eval()
    features.model.load_state_dict(whole.state_dict())
    assert features.feature_info.reduction() == [8, 32]
    assert features.feature_info.channels() == [24, 24]
    maps = whole(images(1, 2, 64, 96))
    for one, expected in zip(features(images(1, 2, 64, 96)), (maps[1], maps[3]), strict=True):
        assert torch.equal(one, expected)
    assert timm.create_model(TINY, features_only=True, **SMALL).feature_info.reduction() == list(STRIDES)
    with pytest.raises(ValueError, match="'NHWC'"):
        whole.forward_intermediates(images(1, 2, 64, 96), output_fmt="NHWC")


@pytest.mark.parametrize("scheme", ["gap", "lape", "pvg", "mpvg"])
@pytest.mark.parametrize("last_norm", [False, True])
def test_fold(scheme: str, last_norm: bool) -> None:
    model, x = build(scheme, last_norm=last_norm), images(1, 2, 80, 64)
    folded = fold(model, (80, 64))  # which the adapter pads to 96 x 64
    assert not any("norm_pos" in name for name, _ in folded.named_parameters())
    for one, expected in zip(folded(x), model(x), strict=True):
        assert relative(one, expected) < 1e-5
    assert fold(folded) is folded
    with pytest.raises(ValueError, match=r"images of 128 x 64 pixels: this backbone is folded for 96 x 64"):
        folded(images(1, 2, 128, 64))
    features = timm.create_model(TINY, scheme=scheme, last_norm=last_norm, features_only=True, **SMALL).eval()
    features.model.load_state_dict(model.state_dict())
    assert relative(fold(features, (80, 64))(x)[2], model(x)[2]) < 1e-5


def test_initial_values_are_the_official_ones() -> None:
    """Of a whole adapter, where one part's could be lost to another's."""
    torch.manual_seed(0)
    model = timm.create_model(TINY)
    for interaction in model.interactions:
        assert (interaction.injector.gamma == 0).all()
        for attention in (interaction.injector.attn, interaction.extractor.attn):
            assert (attention.sampling_offsets.weight == 0).all()
            assert (attention.attention_weights.weight == 0).all()
            offsets = attention.sampling_offsets.bias.view(6, attention.num_levels, 4, 2)
            assert torch.allclose(offsets.abs().amax(-1), torch.arange(1.0, 5).expand(6, attention.num_levels, 4))
            bound = attention.value_proj.weight.detach().abs().max()  # of a uniform distribution
            assert bound == pytest.approx((6 / 384) ** 0.5, rel=0.01)
        assert interaction.extractor.ffn.fc1.weight.detach().std() == pytest.approx(0.02, rel=0.1)
    for conv, width in ((model.spatial_prior.conv3[0], 256), (model.spatial_prior.conv4[0], 256)):
        assert conv.weight.detach().std() == pytest.approx((2 / (9 * width)) ** 0.5, rel=0.05)
    assert model.level_embed.detach().std() == pytest.approx(1, rel=0.15)
    assert (model.trunk.blocks[3].ls1.gamma == 1).all()


def test_gradient_checkpointing() -> None:
    grads = []
    for enable in (False, True):
        model = build().train()
        model.set_grad_checkpointing(enable)
        ran: list[int] = []
        model.interactions[0].extractor.feat_norm.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        sum(one.square().mean() for one in model(images(2, 2, 64, 64))).backward()
        assert len(ran) == 1 + enable
        grads.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_half_precision() -> None:
    model, x = build(window_size=3), images(1, 2, 96, 64)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x)
    half = model.bfloat16()(x.bfloat16())
    for exact, one, other in zip(expected, mixed, half, strict=True):
        assert other.dtype == torch.bfloat16
        assert relative(one.float(), exact) < 0.05
        assert relative(other.float(), exact) < 0.05


def test_compile_and_export() -> None:
    model, x = build(window_size=3, depth=2, interactions=1), images(1, 2, 96, 64)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    exported = torch.export.export(model, (x,)).module()(x)
    for one, other, wanted in zip(compiled, exported, expected, strict=True):
        assert relative(one, wanted) < 1e-5
        assert relative(other, wanted) < 1e-5


@pytest.mark.slow
def test_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = fold(build(window_size=3), (96, 64)), images(1, 2, 96, 64)
    torch.onnx.export(model, (x,), tmp_path / "adapter.onnx", dynamo=True)
    found = onnxruntime.InferenceSession(tmp_path / "adapter.onnx").run(None, {"x": x.numpy()})
    for one, expected in zip(found, model(x), strict=True):
        assert relative(torch.from_numpy(one), expected) < 1e-4


@pytest.mark.parametrize("name", ADAPTERS)
def test_full_size(name: str) -> None:
    model = timm.create_model(name, window_size=14).eval()
    with torch.inference_mode():
        maps = model(images(1, 3, 64, 96))
    assert [tuple(one.shape[1:]) for one in maps] == [
        (model.num_features, 64 // stride, 96 // stride) for stride in STRIDES
    ]
    assert all(one.isfinite().all() for one in maps)


def test_rates_decay_with_depth_as_timm_has_it() -> None:
    """0.95^13 for patches and table, 0.95^(12-i) for block i, 1 for the adapter, at twelve blocks."""
    model = timm.create_model(TINY, **{**SMALL, "depth": 12, "embed_dim": 12, "deform_heads": 3})
    groups = param_groups_layer_decay(model, layer_decay=0.95, no_weight_decay_list=model.no_weight_decay())
    scales = {name: group["lr_scale"] for group in groups for name in _names(model, group["params"])}
    for name, scale in scales.items():
        power = 0
        if name.startswith(("trunk.pos_embed", "trunk.patch_embed")):
            power = 13
        elif name.startswith("trunk.blocks."):
            power = 12 - int(name.split(".")[2])
        assert scale == pytest.approx(0.95**power), name


def _names(model: Any, parameters: list[Tensor]) -> list[str]:
    ids = {id(parameter) for parameter in parameters}
    return [name for name, parameter in model.named_parameters() if id(parameter) in ids]
