"""A timm model converted: the same function at first, another read-out only when asked for, and everything learns."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelThingsBlock

from conversion import FEW, build, converted, every_kind, inputs
from families import CEIT, FAMILIES, SWIN, T2T, VIT, VIT_LITE, Family
from families import build as build_ours
from families import inputs as inputs_of
from helpers import images, relative
from mpvg import convert, create_model, fold
from reference import Switches, run

WITHOUT = ("gap", "mpvg", "pvg:last_norm=1", "mpvg:hierarchical=false,first_block=true")
WITH = ("default", "pvg_cls", "pvg_cls:last_norm=0")
PLAIN = "vit_base_patch16_gap_224"
TOKEN = "vit_base_patch14_dinov2"  # reads out a class token, and has layer scale
DEIT = {**FEW, "num_classes": 7}  # of vit_tiny_patch16_224


def keeping(model: Any) -> tuple[str, ...]:
    """Return schemes that read out what a model reads out."""
    return WITH if getattr(model, "global_pool", "avg") == "token" else WITHOUT


def delivers(model: Any) -> list[str]:
    """Return the names of the blocks that the plan delivers to."""
    names = {id(part): name for name, part in model.named_modules()}
    return [names[id(block)] for block, source in zip(model.all_blocks(), model.plan.blocks, strict=True) if source]


@pytest.mark.parametrize("name", every_kind())
def test_the_function_is_kept(name: str) -> None:
    source = build(name)
    before = {key: value.clone() for key, value in source.state_dict().items()}
    kept, x = type(source), inputs(source)
    with torch.no_grad():
        expected = source(x)
        assert expected.isfinite().all()
        for scheme in keeping(source):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                ours = convert(source, scheme)
            assert relative(ours(x), expected) <= 1e-6, scheme
            assert type(ours) is not kept
    assert type(source) is kept
    assert source.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert not [key for key, _ in source.named_modules() if "pos" in key.rpartition(".")[2] and key != "pos_drop"]


@pytest.mark.parametrize("name", every_kind())
def test_keys(name: str) -> None:
    """timm's, a norm's for each position, and no more than one gate a block."""
    source = build(name, device="meta")
    is_vit = hasattr(source, "blocks")
    affine = [key for key, _ in (source if is_vit else source.layers[0]).blocks[0].norm1.named_parameters()]
    for scheme in (*WITHOUT, *WITH) if is_vit else WITHOUT:
        ours, plain = converted(source, scheme), converted(source, scheme, preserve=False)
        keeps_token = scheme in WITH or (is_vit and source.has_class_token and source.global_pool != "token")
        dropped = set() if keeps_token else {"cls_token"}
        if scheme in WITH:  # reads no tokens pooled by attention
            dropped |= {key for key in source.state_dict() if key.startswith("attn_pool.")}
        expected = set(source.state_dict()) - dropped | {"pos_embed"} | ({"cls_token"} if keeps_token else set())
        expected |= {f"{block}.norm_pos.{part}" for block in delivers(ours) for part in affine}
        expected |= {f"norm_pos.{part}" for part in affine if ours.plan.last is not None}
        assert set(plain.state_dict()) == expected, scheme
        assert set(ours.state_dict()) == expected | {f"{block}.ls_pos.gamma" for block in delivers(ours)}, scheme


@pytest.mark.parametrize("name", [PLAIN, "test_vit4", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("preserve", [True, False])
def test_where_position_norms_start(name: str, preserve: bool) -> None:
    ours = convert(build(name), preserve=preserve)
    shut = ("norm_pos.weight", "norm_pos.bias") if preserve else ()
    seen = [key for key, _ in ours.named_parameters() if "norm_pos" in key or "ls_pos" in key]
    assert len(seen) >= len(delivers(ours)) + 1
    for key in seen:
        value = ours.get_parameter(key)
        one = key.endswith("norm_pos.weight") and key not in shut
        assert torch.equal(value, torch.full_like(value, float(one))), key


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "vit_medium_patch16_gap_240"])
@pytest.mark.parametrize("scheme", ["mpvg", "lape_gap", "gap_last"])
def test_create_model_has_the_same_keys_but_the_gates(name: str, scheme: str) -> None:
    source = timm.create_model(name, device="meta")
    ours, made = converted(source, scheme).state_dict(), create_model(name, scheme=scheme, device="meta").state_dict()
    assert {key for key in ours if "ls_pos" not in key} == set(made)
    assert all(ours[key].shape == value.shape for key, value in made.items())


@pytest.mark.parametrize("name", [PLAIN, "swin_tiny_patch4_window7_224"])
def test_mode_type_and_what_is_frozen_are_kept(name: str) -> None:
    source = build(name, drop_rate=0.1).double().train()
    source.patch_embed.requires_grad_(False)
    source(inputs(source, dtype=torch.float64)).sum().backward()
    grads = {key: None if value.grad is None else value.grad.clone() for key, value in source.named_parameters()}
    for training in (True, False):
        ours = convert(source.train(training))
        assert all(module.training is training for module in ours.modules())
        assert source.training is training
        assert {value.dtype for value in ours.parameters()} == {torch.float64}
        assert {key for key, value in ours.named_parameters() if not value.requires_grad} == {
            key for key, value in source.named_parameters() if not value.requires_grad
        }
        assert all(value.grad is None for value in ours.parameters())
    for key, value in source.named_parameters():
        grad = grads[key]
        assert (value.grad is None) == (grad is None)
        assert value.grad is None or grad is None or torch.equal(value.grad, grad)
    assert {value.device.type for value in convert(source.to("meta")).parameters()} == {"meta"}
    assert {value.dtype for value in convert(build(name).bfloat16()).parameters()} == {torch.bfloat16}


def test_training_alike_while_nothing_is_drawn() -> None:
    """In training mode too, and with the same random numbers where some are drawn."""
    source = build(PLAIN, drop_rate=0.2, proj_drop_rate=0.2, drop_path_rate=0.3).train()
    ours, x = convert(source), inputs(source)
    torch.manual_seed(1)
    expected = source(x)
    torch.manual_seed(1)
    assert relative(ours(x), expected) <= 1e-6


class TestReadOut:
    """A class token for a mean, and a mean for a class token."""

    @pytest.mark.parametrize("scheme", ["mpvg", "pvg", "gap", "gap_last", "lape_gap"])
    def test_dropping_a_class_token_is_asked_for(self, scheme: str) -> None:
        source = build(TOKEN)
        with pytest.raises(ValueError, match=rf"{scheme}.*class token.*'pvg_cls'.*allow_readout_change=True"):
            convert(source, scheme)
        with pytest.warns(UserWarning, match=r"the class token and its row of the position table are dropped"):
            ours = convert(source, scheme, allow_readout_change=True)
        assert not ours.has_class_token
        assert ours.num_prefix_tokens == 0
        assert torch.equal(ours.pos_embed, source.pos_embed[:, 1:])
        with pytest.warns(UserWarning, match=r"the class token is dropped; the head reads the mean"):
            convert(build("deit3_small_patch16_224"), scheme, allow_readout_change=True)

    @pytest.mark.parametrize("scheme", ["default", "lape", "pvg_cls"])
    def test_a_new_class_token_is_asked_for(self, scheme: str) -> None:
        source = build(PLAIN)
        with pytest.raises(ValueError, match=rf"{scheme}.*pools its tokens \(avg\).*allow_readout_change=True"):
            convert(source, scheme)
        with pytest.warns(UserWarning, match=r"the class token is new and untrained.*trained on avg pooling"):
            ours = convert(source, scheme, allow_readout_change=True)
        assert ours.cls_token.abs().max() < 0.2
        assert torch.equal(ours.pos_embed[:, 1:], source.pos_embed)
        assert ours(inputs(source)).shape == (2, 7)

    def test_a_token_beside_another_read_out_is_read(self) -> None:
        source = build("eva_large_patch14_196")
        with pytest.warns(UserWarning, match=r"reads the class token, and was trained on avg pooling") as caught:
            ours = convert(source, "default", allow_readout_change=True)
        assert "new" not in str(caught[0].message)
        assert torch.equal(ours.cls_token, source.cls_token)
        x = inputs(source)
        with torch.no_grad():
            assert relative(ours(x), source.head(source.fc_norm(source.forward_features(x)[:, 0]))) <= 1e-6

    def test_pooling_by_attention_is_dropped(self) -> None:
        with pytest.warns(UserWarning, match=r"the pooling by attention is dropped.*trained on map pooling"):
            ours = convert(build("vit_base_patch16_siglip_224"), "pvg_cls", allow_readout_change=True)
        assert not [key for key in ours.state_dict() if "attn_pool" in key]

    @pytest.mark.parametrize("preserve", [True, False])
    @pytest.mark.parametrize("wrong", ["", "row", "term"])
    def test_what_is_left_is_the_mean_after_the_last_norm(self, preserve: bool, wrong: str) -> None:
        source = build("vit_tiny_patch16_224", **DEIT).double()
        ours = converted(source, "mpvg", preserve=preserve)
        weights = {key: value for key, value in source.state_dict().items() if key != "cls_token"}
        table = weights["pos_embed"]
        weights["pos_embed"] = table[:, :-1] if wrong == "row" else table[:, 1:]
        weights |= {key: value for key, value in ours.state_dict().items() if "norm_pos" in key}
        switches = Switches(False, True, not preserve, not preserve, False, None if preserve else 0)
        if wrong == "term":
            switches.last_norm = 0 if preserve else None
            weights["norm_pos.bias"] = weights.get("norm_pos.bias", 0) + 1
        x = inputs(source, dtype=torch.float64)
        with torch.no_grad():
            apart = relative(ours(x), run(weights, x, switches, depth=3, heads=4, patch=16)["logits"])
        assert apart > 1e-4 if wrong else apart < 1e-9

    def test_a_table_taken_from_the_input_is_told(self) -> None:
        with pytest.warns(UserWarning, match="no longer joins the input, which changes what the model computes"):
            convert(build(TOKEN), "lape")
        with pytest.warns(UserWarning, match="the position table is dropped, which changes"):
            assert convert(build(PLAIN), "gap:join_input=false").pos_embed is None


class TestRefused:
    def test_other_blocks(self) -> None:
        parallel = timm.create_model("vit_tiny_patch16_224", block_fn=ParallelThingsBlock, **DEIT)
        with pytest.raises(ValueError, match="blocks of ParallelThingsBlock are not converted"):
            convert(parallel)
        mixed = build(PLAIN)
        mixed.blocks[1] = parallel.blocks[1]
        with pytest.raises(ValueError, match="ParallelThingsBlock"):
            convert(mixed)

    def test_other_models(self) -> None:
        for name in ("resnet18", "swinv2_cr_tiny_224", "eva02_tiny_patch14_224"):
            model = timm.create_model(name, device="meta")
            with pytest.raises(ValueError, match=rf"^{type(model).__name__} is not converted.*VisionTransformer"):
                convert(model)

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
    def test_what_delivers_positions_already(self, family: Family) -> None:
        for scheme in ("mpvg", "lape_gap", "gap_last"):
            with pytest.raises(ValueError, match=f"delivers positions already, by scheme '{scheme}'"):
                convert(build_ours(family, scheme), "pvg")
        with pytest.raises(ValueError, match=r"is folded.*the model that it was folded from"):
            convert(fold(build_ours(family, "gap")))
        with pytest.raises(ValueError, match="delivers positions already"):
            convert(convert(build_ours(family, "gap")))


@pytest.mark.parametrize("family", [VIT, VIT_LITE, T2T, CEIT, SWIN], ids=lambda family: family.models[0])
class TestOurOwn:
    def test_plain_models_keep_their_function(self, family: Family) -> None:
        x = inputs_of(family)
        for plain, schemes in (("gap", WITHOUT), ("default", WITH if family.class_tokens else WITHOUT)):
            source = build_ours(family, plain)
            for scheme in schemes:
                with torch.no_grad():
                    assert relative(convert(source, scheme)(x), source(x)) <= 1e-6, scheme
            assert str(source.scheme) == (plain if family.class_tokens else "gap")

    def test_they_become_what_is_built_so(self, family: Family) -> None:
        """Not preserved, the converted model is the registered one."""
        ours = convert(build_ours(family, "gap"), "mpvg", preserve=False)
        built = timm.create_model(family.models[0], scheme="mpvg", **family.shrunken).eval()
        built.load_state_dict(ours.state_dict())
        x = inputs_of(family)
        assert torch.equal(ours(x), built(x))


LEARNERS: dict[str, tuple[str, ...]] = {
    PLAIN: ("mpvg", "pvg", "lape_gap", "gap_last", "mpvg:hierarchical=false"),
    TOKEN: ("mpvg", "lape", "pvg_cls"),
    "swin_tiny_patch4_window7_224": ("mpvg", "pvg", "lape_gap", "gap_last", "mpvg:hierarchical=false"),
    "no table, class token": ("mpvg", "pvg", "lape", "gap_last", "mpvg:hierarchical=false"),
    "test_vit2": ("mpvg", "pvg", "gap_last"),
    "ceit": ("mpvg", "pvg", "lape", "gap_last", "mpvg:hierarchical=false"),
}


@pytest.mark.parametrize(("name", "scheme"), [(name, scheme) for name in LEARNERS for scheme in LEARNERS[name]])
def test_everything_learns(name: str, scheme: str) -> None:
    """Without weight decay, so that what moves has had a gradient."""
    torch.manual_seed(0)
    if name == "ceit":
        source: Any = timm.create_model(
            CEIT.models[0], scheme="default" if scheme == "lape" else "gap", **CEIT.shrunken
        )
    else:
        source = build(name)
        source.init_weights()
    model = converted(source, scheme).train()
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    targets = torch.randint(7, (20, 8), generator=torch.Generator().manual_seed(0))
    channels, size = model.in_chans, model.patch_embed.img_size
    for step in range(20):
        loss = torch.nn.functional.cross_entropy(model(images(8, channels, *size, seed=step)), targets[step])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    learners = {key: value for key, value in model.named_parameters() if "norm_pos" in key or "ls_pos" in key}
    for key, value in learners.items():
        assert (value != start[key]).double().mean() > 0.9, key
    positions = model.positions()
    delivered = [table for table in (*positions.blocks, positions.last) if table is not None]
    gates = [key for key in learners if "ls_pos" in key]
    assert len(gates) >= len(delivers(model))  # CeiT's LCA has one more
    assert len(delivered) == len(gates) + (model.plan.last is not None)
    for table in delivered:
        assert table.flatten(1, -2)[0].std(dim=0).max() > 1e-6
