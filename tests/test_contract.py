"""One battery that every registered model passes under every scheme; what a family cannot do, it declares."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import pytest
import timm
import torch
from timm.models import create_feature_extractor, get_graph_node_names
from timm.models._hub import save_for_hf
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from helpers import SMALL, images, perturb, relative, timm_records_arguments
from mpvg import SCHEMES, PositionScheme
from mpvg.models.weights import filter_checkpoint
from mpvg.scheme import SchemeLike


@dataclass(frozen=True)
class Family:
    """A family's registered models, how to shrink them, and what they cannot do (each "no" is tested too)."""

    models: tuple[str, ...]
    shrunken: dict[str, Any]
    cannot: dict[str, type[Exception]] = field(default_factory=dict)  # check without test_ -> the error that says so
    no_gradient: frozenset[str] = frozenset()  # parameters that rightly have none once perturbed


VIT = Family(
    models=(
        "mpvg_deit_tiny_patch16_224",
        "mpvg_deit_small_patch16_224",
        "mpvg_deit_base_patch16_224",
        "mpvg_vit_nano",
    ),
    shrunken=SMALL,
)
FAMILIES = (VIT,)
CASES = [
    pytest.param(family, name, scheme, id=f"{name}-{scheme}")
    for family in FAMILIES
    for name in family.models
    for scheme in SCHEMES
]


def every_model_and_scheme(test: Callable[..., None]) -> Any:
    """Run a check over everything; where the family declares a "no" to it, see that it says so."""

    @wraps(test)
    def checked(family: Family, name: str, scheme: str, **rest: Any) -> None:
        error = family.cannot.get(test.__name__.removeprefix("test_"))
        if error is None:
            test(family, name, scheme, **rest)
        else:
            with pytest.raises(error):
                test(family, name, scheme, **rest)

    return pytest.mark.parametrize(("family", "name", "scheme"), CASES)(checked)


def build(family: Family, name: str, scheme: SchemeLike, **changes: Any) -> Any:
    torch.manual_seed(0)
    return perturb(timm.create_model(name, scheme=scheme, **{**family.shrunken, **changes})).eval()


def inputs(family: Family, *, batch: int = 2, size: tuple[int, int] | None = None) -> torch.Tensor:
    side = family.shrunken["img_size"]
    return images(batch, family.shrunken["in_chans"], *(size or (side, side)))


def test_every_registered_model_is_in_a_family() -> None:
    assert set(timm.list_models("mpvg_*")) == {name for family in FAMILIES for name in family.models}


@pytest.mark.parametrize("name", [name for family in FAMILIES for name in family.models])
def test_full_size(name: str) -> None:
    model = timm.create_model(name).eval()
    assert model.scheme == PositionScheme()
    with torch.inference_mode():
        logits = model(images(1, *model.default_cfg["input_size"]))
    assert logits.shape == (1, model.num_classes)
    assert logits.isfinite().all()


@every_model_and_scheme
def test_forward_and_backward(family: Family, name: str, scheme: str) -> None:
    model = build(family, name, scheme).train()
    logits = model(inputs(family))
    assert logits.shape == (2, family.shrunken["num_classes"])
    (logits * images(*logits.shape, seed=1)).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter_name in family.no_gradient or parameter.grad.abs().max() > 0, parameter_name


@every_model_and_scheme
def test_gradient_checkpointing(family: Family, name: str, scheme: str) -> None:
    x, grads, runs = inputs(family), [], []
    for enable in (False, True):
        model = build(family, name, scheme).train()
        model.set_grad_checkpointing(enable)
        ran: list[int] = []
        for block in model.blocks:
            block.norm2.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        model(x).square().mean().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
        runs.append(len(ran))
    assert runs == [len(model.blocks), 2 * len(model.blocks)]  # each block runs once more on the way back
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@every_model_and_scheme
def test_intermediates(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, name, scheme), inputs(family)
    with torch.no_grad():
        y = model.forward_features(x)
        final, taken = model.forward_intermediates(x)
        assert torch.equal(final, y)
        assert len(taken) == len(model.blocks)
        normed = model.forward_intermediates(x, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)
        assert torch.equal(normed[0], y[:, model.num_prefix_tokens :])
        as_dict = model.forward_intermediates(x, indices=[0], output_dict=True, return_prefix_tokens=True)
        assert torch.equal(as_dict["image_features"], y)
        assert ("image_intermediates_prefix" in as_dict) == (model.num_prefix_tokens > 0)
        early = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], taken[1])
        assert torch.equal(model.get_intermediate_layers(x, n=[1], reshape=True)[0], taken[1])
    with pytest.raises(ValueError, match="'NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")


@every_model_and_scheme
def test_features_only(family: Family, name: str, scheme: str) -> None:
    whole, x = build(family, name, scheme), inputs(family)
    torch.manual_seed(0)
    features = timm.create_model(name, scheme=scheme, features_only=True, out_indices=(0, 2), **family.shrunken).eval()
    assert features.feature_info.channels() == [family.shrunken["embed_dim"]] * 2
    features.model.load_state_dict(whole.state_dict(), strict=False)
    maps = features(x)
    expected = whole.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    for actual, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    sum(feature.square().mean() for feature in maps).backward()
    unused = [
        key for key, parameter in features.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not unused, "left over by pruning"


@every_model_and_scheme
def test_classifier_can_be_changed(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, name, scheme), inputs(family)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)
    headless = build(family, name, scheme, num_classes=0)
    assert headless(x).shape == (2, headless.head_hidden_size)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))


@every_model_and_scheme
@pytest.mark.parametrize("pos_embed", ["learn", "sincos1d", "sincos2d"])
def test_other_sizes(family: Family, name: str, scheme: str, pos_embed: str) -> None:
    """Dynamic sizes and set_input_size equal a model built at that size that loads the same weights."""
    size = (24, 12)
    x = inputs(family, size=size)
    dynamic = build(family, name, scheme, dynamic_img_size=True, pos_embed=pos_embed)
    if pos_embed != "learn":
        dynamic.init_weights()  # a perturbed sinusoid is none
        perturb_all_but_table(dynamic)
    built = timm.create_model(
        name, scheme=scheme, **{**family.shrunken, "img_size": size, "pos_embed": pos_embed}
    ).eval()
    weights = filter_checkpoint(dynamic.state_dict(), built)
    built.load_state_dict(weights)
    expected = built(x)
    torch.testing.assert_close(dynamic(x), expected, rtol=1e-5, atol=1e-5)
    dynamic.set_input_size(img_size=size)
    torch.testing.assert_close(dynamic(x), expected, rtol=1e-5, atol=1e-5)
    assert dynamic.pos_embed.shape == built.pos_embed.shape
    assert dynamic.pos_embed.requires_grad == (pos_embed == "learn")


def perturb_all_but_table(model: Any) -> None:
    table = model.pos_embed.detach().clone()
    perturb(model)
    with torch.no_grad():
        model.pos_embed.copy_(table)


@every_model_and_scheme
def test_torchscript(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, name, scheme), inputs(family)
    assert relative(torch.jit.script(model)(x), model(x)) < 1e-6
    dynamic = build(family, name, scheme, dynamic_img_size=True)
    wide = inputs(family, size=(16, 24))
    assert relative(torch.jit.script(dynamic)(wide), dynamic(wide)) < 1e-6


@every_model_and_scheme
@pytest.mark.parametrize("dynamic", [False, True])
def test_fx(family: Family, name: str, scheme: str, dynamic: bool) -> None:
    model, x = build(family, name, scheme, dynamic_img_size=dynamic), inputs(family)
    _, nodes = get_graph_node_names(model)
    traced = create_feature_extractor(model, return_nodes={nodes[-1]: "out"})
    assert relative(traced(x)["out"], model(x)) < 1e-6


@every_model_and_scheme
def test_compile(family: Family, name: str, scheme: str) -> None:
    torch._dynamo.reset()
    model, x = build(family, name, scheme), inputs(family)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert relative(compiled(x), model(x)) < 1e-5
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(model(x).square().mean(), parameters)
    for actual, wanted in zip(torch.autograd.grad(compiled(x).square().mean(), parameters), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
def test_compile_with_inductor(family: Family) -> None:
    torch._dynamo.reset()
    model, x = build(family, family.models[0], "mpvg"), inputs(family)
    assert relative(torch.compile(model, fullgraph=True)(x), model(x)) < 1e-4


@every_model_and_scheme
def test_export(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, name, scheme), inputs(family)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    other = inputs(family, batch=3)
    assert relative(program.module()(other), model(other)) < 1e-5


@every_model_and_scheme
def test_bfloat16(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, name, scheme), inputs(family)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    assert relative(logits.float(), expected) < 0.1
    assert model.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


@every_model_and_scheme
def test_meta_device_and_late_initialisation(family: Family, name: str, scheme: str) -> None:
    for pos_embed in ("learn", "sincos1d"):
        model = timm.create_model(
            name, scheme=scheme, pos_embed=pos_embed, device="meta", dtype=torch.float64, **family.shrunken
        )
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert {p.dtype for p in model.parameters()} == {torch.float64}
        model = model.to_empty(device="cpu").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        model.init_weights()
        assert model(inputs(family).double()).isfinite().all()


@pytest.mark.skipif(not timm_records_arguments(), reason="this timm needs model_args in save_for_hf")
@every_model_and_scheme
def test_saved_folder_gives_the_model_back(family: Family, name: str, scheme: str, tmp_path: Any) -> None:
    model, x = build(family, name, SCHEMES[scheme]), inputs(family)
    save_for_hf(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert loaded.scheme == model.scheme
    assert torch.equal(loaded(x), model(x))
    model.set_input_size(img_size=(32, 32))
    save_for_hf(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    wide = inputs(family, size=(32, 32))
    assert torch.equal(loaded(wide), model(wide))


@every_model_and_scheme
def test_optimiser_groups(family: Family, name: str, scheme: str) -> None:
    model = build(family, name, scheme)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    scales = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay())
        for parameter in group["params"]
    }
    assert set(scales) == set(names.values())
    for key, scale in scales.items():
        if "norm_pos" in key:
            assert scale == scales[key.replace("norm_pos", "norm1" if key.startswith("blocks") else "norm")]
    assert scales["pos_embed"] == min(scales.values())
    plain = {
        names[id(parameter)]
        for group in param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
        for parameter in group["params"]
        if group["weight_decay"] == 0
    }
    assert {key for key in names.values() if "norm" in key or key in ("pos_embed", "cls_token")} <= plain
