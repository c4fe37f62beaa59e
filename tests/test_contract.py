"""One battery that every registered model passes under every scheme; what a family cannot do, it declares."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from functools import partial, wraps
from typing import Any

import pytest
import timm
import torch
from timm.models import create_feature_extractor, get_graph_node_names
from timm.models._hub import save_for_hf
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from families import ADAPTERS, FAMILIES, SWIN, Family, build, inputs, tame
from helpers import images, perturb, relative, timm_records_arguments
from mpvg import SCHEMES, PositionScheme, fold
from mpvg.models.weights import filter_checkpoint
from mpvg.scheme import SchemeLike


def cases(quick: Collection[str]) -> list[Any]:
    """Return every model and scheme that is tested; all but the first model of a family under `quick` ones are slow.

    Shrunken, a family's models are much the same: the first goes through all schemes, the others through one.
    """
    return [
        pytest.param(
            family,
            name,
            scheme,
            id=f"{name}-{scheme}",
            marks=[pytest.mark.slow] * (name != family.models[0] or scheme not in quick),
        )
        for family in FAMILIES
        for name in family.models
        for scheme in (family.schemes if name == family.models[0] else ["mpvg"])
    ]


def every_model_and_scheme(test: Callable[..., None], *, quick: Collection[str] = SCHEMES) -> Any:
    """Run a check over everything; where the family declares a "no" to it, see that it says so."""

    @wraps(test)
    def checked(family: Family, name: str, scheme: str, **rest: Any) -> None:
        error = family.cannot.get(test.__name__.removeprefix("test_"))
        if error is None:
            test(family, name, scheme, **rest)
        else:
            with pytest.raises(error):
                test(family, name, scheme, **rest)

    return pytest.mark.parametrize(("family", "name", "scheme"), cases(quick))(checked)


def test_every_registered_model_is_in_a_family() -> None:
    of_families = {name for family in FAMILIES for name in family.models}
    elsewhere = {
        *ADAPTERS,
        "mpvg_sequence",
    }  # batteries of their own: tests/test_dense_adapter.py, tests/test_sequence.py
    assert set(timm.list_models("mpvg_*")) == of_families | elsewhere


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
    model = build(family, scheme, name).train()
    logits = model(inputs(family))
    assert logits.shape == (2, family.shrunken["num_classes"])
    (logits * images(*logits.shape, seed=1)).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), parameter_name
            assert family.no_gradient(parameter_name, model) or parameter.grad.abs().max() > 0, parameter_name


@every_model_and_scheme
def test_tokens_lie_as_norms_read_them(family: Family, name: str, scheme: str) -> None:
    """Left as the patches' convolution puts them out, every norm would copy them first."""
    model = build(family, scheme, name)
    for block in model.all_blocks():
        for norm in (block.norm1, block.norm2):
            norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    seen: list[bool] = []
    model(inputs(family))
    assert len(seen) == 2 * family.depth
    assert all(seen)


@every_model_and_scheme
def test_gradient_checkpointing(family: Family, name: str, scheme: str) -> None:
    x, grads, runs = inputs(family), [], []
    for enable in (False, True):
        model = build(family, scheme, name).train()
        model.set_grad_checkpointing(enable)
        ran: list[int] = []
        for block in model.all_blocks():
            block.norm2.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        model(x).square().mean().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
        runs.append(len(ran))
    assert runs == [family.depth, 2 * family.depth]  # each block runs once more on the way back
    for plain, checkpointed in zip(*grads, strict=True):
        if plain is not None:
            torch.testing.assert_close(checkpointed, plain)


@every_model_and_scheme
def test_intermediates(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, scheme, name), inputs(family)
    parts = len(model.layers) if family is SWIN else family.depth
    with torch.no_grad():
        final, taken = model.forward_intermediates(x)
        assert torch.equal(final, model.forward_features(x))
        assert len(taken) == parts
        early = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(early[0], taken[1])
        (normed,) = model.forward_intermediates(x, indices=[parts - 1], norm=True, intermediates_only=True)
        tokens = taken[-1].permute(0, 2, 3, 1)
        last = model.positions().last
        if last is not None:
            rows = last if family is SWIN else last[:, int(model.has_class_row) :].unflatten(1, tokens.shape[1:3])
        expected = model.norm(tokens) + (0.0 if last is None else rows)
        torch.testing.assert_close(normed, expected.permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match="'NCWH'"):
        model.forward_intermediates(x, output_fmt="NCWH")


@every_model_and_scheme
def test_prefix_tokens_stand_beside_the_maps(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, scheme, name), inputs(family)
    with torch.no_grad():
        as_dict = model.forward_intermediates(x, indices=[0], output_dict=True, return_prefix_tokens=True)
        assert torch.equal(as_dict["image_features"], model.forward_features(x))
        assert ("image_intermediates_prefix" in as_dict) == (model.num_prefix_tokens > 0)
        (map_,) = model.get_intermediate_layers(x, n=[0], reshape=True)
        (tokens,) = model.get_intermediate_layers(x, n=[0])
        assert torch.equal(map_, as_dict["image_intermediates"][0])
        assert torch.equal(map_.flatten(2).transpose(1, 2), tokens)


@every_model_and_scheme
def test_features_only(family: Family, name: str, scheme: str) -> None:
    whole, x = build(family, scheme, name), inputs(family)
    torch.manual_seed(0)
    features = timm.create_model(name, scheme=scheme, features_only=True, out_indices=(0, 2), **family.shrunken).eval()
    features.model.load_state_dict(whole.state_dict(), strict=False)
    maps = features(x)
    assert features.feature_info.channels() == [feature.shape[1] for feature in maps]
    expected = whole.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    for actual, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    sum(feature.square().mean() for feature in maps).backward()
    unused = [
        key for key, parameter in features.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not unused, "left over by pruning"
    if features.model.plan.uses_positions and features.model.pos_embed.requires_grad:
        assert features.model.pos_embed.grad.abs().max() > 0  # the features know of positions


@every_model_and_scheme
def test_classifier_can_be_changed(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, scheme, name), inputs(family)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)
    headless = build(family, scheme, name, num_classes=0)
    assert headless(x).shape == (2, headless.head_hidden_size)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))


@every_model_and_scheme
@pytest.mark.parametrize("pos_embed", ["learn", "sincos1d", "sincos2d"])
def test_other_sizes(family: Family, name: str, scheme: str, pos_embed: str) -> None:
    """Dynamic sizes and set_input_size equal a model built at that size that loads the same weights."""
    size = family.wide
    x = inputs(family, size=size)
    dynamic = build(family, scheme, name, dynamic_img_size=True, pos_embed=pos_embed)
    if pos_embed != "learn":
        dynamic.init_weights()  # a perturbed sinusoid is none
        perturb_all_but_table(dynamic)
    built = timm.create_model(
        name, scheme=scheme, **{**family.shrunken, "img_size": size, "pos_embed": pos_embed}
    ).eval()
    weights = filter_checkpoint(dynamic.state_dict(), built)
    built.load_state_dict(weights)
    expected = built(x)
    at_home = dynamic(inputs(family))
    torch.testing.assert_close(dynamic(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(dynamic(inputs(family)), at_home)  # nothing remembers the other size
    folded = fold(dynamic)
    assert relative(folded(inputs(family)), at_home) < 1e-5
    dynamic.set_input_size(img_size=size, **family.resize)
    torch.testing.assert_close(dynamic(x), expected, rtol=1e-5, atol=1e-5)
    assert dynamic.pos_embed.shape == built.pos_embed.shape
    assert dynamic.pos_embed.requires_grad == (pos_embed == "learn")


def perturb_all_but_table(model: Any) -> None:
    table = model.pos_embed.detach().clone()
    tame(perturb(model))
    with torch.no_grad():
        model.pos_embed.copy_(table)


@every_model_and_scheme
def test_torchscript(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, scheme, name), inputs(family)
    assert relative(torch.jit.script(model)(x), model(x)) < 1e-6
    dynamic = build(family, scheme, name, dynamic_img_size=True)
    wide = inputs(family, size=family.wide)
    assert relative(torch.jit.script(dynamic)(wide), dynamic(wide)) < 1e-6


def trace(model: Any, x: torch.Tensor) -> torch.Tensor:
    _, nodes = get_graph_node_names(model)
    traced: torch.Tensor = create_feature_extractor(model, return_nodes={nodes[-1]: "out"})(x)["out"]
    return traced


@every_model_and_scheme
def test_fx(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, scheme, name), inputs(family)
    assert relative(trace(model, x), model(x)) < 1e-6


@every_model_and_scheme
def test_fx_with_dynamic_sizes(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, scheme, name, dynamic_img_size=True), inputs(family)
    assert relative(trace(model, x), model(x)) < 1e-6


@partial(every_model_and_scheme, quick=("default", "lape", "mpvg"))
def test_compile(family: Family, name: str, scheme: str) -> None:
    torch._dynamo.reset()
    model, x = build(family, scheme, name), inputs(family)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert relative(compiled(x), model(x)) < 1e-5
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(model(x).square().mean(), parameters)
    for actual, wanted in zip(torch.autograd.grad(compiled(x).square().mean(), parameters), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(
    "family",
    [pytest.param(one, id=one.models[0], marks=[pytest.mark.slow] * (one is not FAMILIES[0])) for one in FAMILIES],
)
def test_compile_with_inductor(family: Family) -> None:
    torch._dynamo.reset()
    model, x = build(family, "mpvg"), inputs(family)
    assert relative(torch.compile(model, fullgraph=True)(x), model(x)) < 1e-4


@every_model_and_scheme
def test_export(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, scheme, name), inputs(family)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    other = inputs(family, batch=3)
    assert relative(program.module()(other), model(other)) < 1e-5


@every_model_and_scheme
def test_bfloat16(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, scheme, name), inputs(family)
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
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.fill_(float("nan") if tensor.is_floating_point() else 10**6)
        model.init_weights()
        assert model(inputs(family).double()).isfinite().all()


@pytest.mark.skipif(not timm_records_arguments(), reason="this timm needs model_args in save_for_hf")
@every_model_and_scheme
def test_saved_folder_gives_the_model_back(family: Family, name: str, scheme: str, tmp_path: Any) -> None:
    model, x = build(family, SCHEMES[scheme], name), inputs(family)
    save_for_hf(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert loaded.scheme == model.scheme
    assert torch.equal(loaded(x), model(x))
    twice = (2 * family.shrunken["img_size"],) * 2
    model.set_input_size(img_size=twice)
    save_for_hf(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    wide = inputs(family, size=twice)
    assert torch.equal(loaded(wide), model(wide))


@every_model_and_scheme
def test_optimiser_groups(family: Family, name: str, scheme: str) -> None:
    model = build(family, scheme, name)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    scales = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay())
        for parameter in group["params"]
    }
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(scales) == trained
    for key, scale in scales.items():
        if "norm_pos" in key:
            assert scale == scales[key.replace("norm_pos", "norm1" if "blocks" in key or "lca" in key else "norm")]
    assert scales.get("pos_embed", 0) <= min(scales.values())
    assert {scale for key, scale in scales.items() if key.startswith("lca")} <= {scales["norm.weight"]}
    assert scales["head.fc.weight" if family is SWIN else "head.weight"] == max(scales.values()) == 1
    plain = {
        names[id(parameter)]
        for group in param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
        for parameter in group["params"]
        if group["weight_decay"] == 0
    }
    by_shape = {key for key in trained if model.get_parameter(key).ndim <= 1}
    assert {key for key in trained if "norm" in key} <= by_shape
    assert plain == by_shape | (family.undecayed & trained)


@every_model_and_scheme
def test_folded(family: Family, name: str, scheme: str) -> None:
    model, x = build(family, scheme, name), inputs(family)
    folded = fold(model)
    with torch.no_grad():
        assert relative(folded(x), model(x)) <= 1e-6
        assert relative(folded.forward_features(x), model.forward_features(x)) <= 1e-6
        assert not [key for key in folded.state_dict() if "norm_pos" in key]
        assert relative(torch.jit.script(folded)(x), folded(x)) < 1e-6
        for stored, table in zip(folded.positions().blocks, model.positions().blocks, strict=True):
            assert (stored is None) == (table is None)
            assert stored is None or torch.equal(stored, table)
        headless = build(family, scheme, name, num_classes=0)
        assert relative(fold(headless)(x), headless(x)) <= 1e-6
    features = timm.create_model(name, scheme=scheme, features_only=True, **family.shrunken)
    tame(perturb(features)).eval()
    for actual, expected in zip(fold(features)(x), features(x), strict=True):
        assert relative(actual, expected) <= 1e-6


@every_model_and_scheme
def test_one_seed_gives_shared_parameters_the_same_values(family: Family, name: str, scheme: str) -> None:
    def start(scheme: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return timm.create_model(name, scheme=scheme, **family.shrunken).state_dict()

    ours, gap = start(scheme), start("gap")
    rows = gap["pos_embed"].shape[1]
    if family.models[0] != "mpvg_t2t_vit_7":  # a sinusoid with a class token's row is another one
        assert torch.equal(ours["pos_embed"][:, -rows:], gap["pos_embed"])
    shared = (set(ours) & set(gap)) - {"pos_embed"}
    assert {key for key in set(ours) ^ set(gap) if "norm_pos" not in key} <= {"cls_token"}
    assert all(torch.equal(ours[key], gap[key]) for key in shared)


@pytest.mark.parametrize("name", SWIN.models)
def test_a_family_without_class_tokens_says_so(name: str) -> None:
    refused: list[SchemeLike] = ["pvg_cls", "default:class_token=true", {"base": "lape", "class_token": True}]
    for scheme in refused:
        with pytest.raises(ValueError, match=r"class_token=True.*'gap'"):
            timm.create_model(name, scheme=scheme, **SWIN.shrunken)
    with pytest.raises(ValueError, match=r"class_token=True contradicts"):
        timm.create_model(name, scheme="gap", class_token=True, **SWIN.shrunken)
    accepted: list[SchemeLike] = ["default", {"base": "default"}, SCHEMES["default"]]
    for scheme in accepted:
        assert timm.create_model(name, scheme=scheme, **SWIN.shrunken).scheme == SCHEMES["gap"]
    assert timm.create_model(name, scheme="lape", **SWIN.shrunken).scheme == SCHEMES["lape_gap"]
