"""DeiT: parameter counts, equality with timm, tables, sizes, and arguments that contradict the scheme."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models._hub import save_for_hf
from timm.models.vision_transformer import ParallelThingsBlock

import mpvg
from helpers import SMALL, images, perturb, relative, small, timm_records_arguments

COUNTS = {  # architectures: parameters of DeiT-Ti, -S and -B by scheme
    "default": (5_717_416, 22_050_664, 86_567_656),
    "lape": (5_722_024, 22_059_880, 86_586_088),
    "pvg": (5_721_256, 22_058_344, 86_583_016),
    "mpvg": (5_721_640, 22_059_112, 86_584_552),
}
SIZES = ("tiny", "small", "base")


@pytest.mark.parametrize("scheme", COUNTS)
def test_parameter_counts_of_the_twelve_cells(scheme: str) -> None:
    for size, count in zip(SIZES, COUNTS[scheme], strict=True):
        model = timm.create_model(f"mpvg_deit_{size}_patch16_224", scheme=scheme, device="meta")
        assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_nano_is_small_for_8_to_32_pixels() -> None:
    for side in (8, 16, 28, 32):
        model = timm.create_model("mpvg_vit_nano", img_size=side)
        assert sum(parameter.numel() for parameter in model.parameters()) < 500_000
        assert model(images(1, 3, side, side)).shape == (1, 10)


@pytest.mark.skipif(not timm_records_arguments(), reason="this timm needs model_args in save_for_hf")
def test_a_resized_nano_keeps_its_patches_when_saved(tmp_path: Path) -> None:
    model = timm.create_model("mpvg_vit_nano", img_size=16).eval()
    model.set_input_size(img_size=(32, 32))  # at which it would be built with larger patches
    save_for_hf(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(loaded(images(1, 3, 32, 32)), model(images(1, 3, 32, 32)))


@pytest.mark.parametrize("size", SIZES)
def test_default_is_timms_own_deit(size: str) -> None:
    theirs = perturb(timm.create_model(f"deit_{size}_patch16_224"), std=0.1).eval()
    ours = timm.create_model(f"mpvg_deit_{size}_patch16_224", scheme="default").eval()
    ours.load_state_dict(theirs.state_dict())
    x = images(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    "options",
    [
        {"pre_norm": True},
        {"init_values": 0.1},
        {"qk_norm": True, "qkv_bias": False},
        {"no_embed_class": True},
        {"pos_drop_rate": 0.2, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.3, "drop_rate": 0.2},
        {"dynamic_img_size": True, "dynamic_img_pad": True},
        {"weight_init": "jax"},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("training", [False, True])
def test_timms_options_mean_what_they_mean_in_timm(options: dict[str, Any], training: bool) -> None:
    theirs = perturb(timm.create_model("deit_tiny_patch16_224", **SMALL, **options)).train(training)
    ours = timm.create_model("mpvg_deit_tiny_patch16_224", scheme="default", **SMALL, **options).train(training)
    ours.load_state_dict(theirs.state_dict())
    x = images(3, 2, 16, 16)
    mask = torch.zeros(17, 17).masked_fill(torch.ones(17, 17).triu(1).bool(), float("-inf"))
    for attn_mask in (None, mask):
        outputs = []
        for model in (theirs, ours):
            torch.manual_seed(0)
            outputs.append(model(x, attn_mask=attn_mask))
        assert torch.equal(*outputs)
    assert not torch.equal(ours(x), ours(x, attn_mask=mask))


def test_one_seed_gives_shared_parameters_the_same_values() -> None:
    def build(scheme: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return timm.create_model("mpvg_vit_nano", scheme=scheme).state_dict()

    default, mpvg_ = build("default"), build("mpvg")
    assert torch.equal(default.pop("pos_embed")[:, 1:], mpvg_.pop("pos_embed"))
    shared = set(default) & set(mpvg_)
    assert set(default) - shared == {"cls_token"}
    assert all(torch.equal(default[name], mpvg_[name]) for name in shared)


def test_initialisation_is_deits() -> None:
    torch.manual_seed(0)
    model = timm.create_model("mpvg_deit_small_patch16_224", scheme="lape")
    for weights in (model.pos_embed, model.blocks[3].attn.qkv.weight, model.head.weight):
        assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.pos_embed[:, :1].std().item() == pytest.approx(0.02, rel=0.2)
    assert model.blocks[0].norm_pos.eps == model.blocks[0].norm1.eps == 1e-6
    assert torch.equal(model.blocks[0].norm_pos.weight, torch.ones(384))
    assert torch.equal(model.blocks[0].norm_pos.bias, torch.zeros(384))


def test_state_dict_names_are_timms_plus_norm_pos() -> None:
    theirs = set(timm.create_model("deit_tiny_patch16_224", device="meta").state_dict())
    ours = set(timm.create_model("mpvg_deit_tiny_patch16_224", scheme="mpvg", device="meta").state_dict())
    norms = {f"{place}.{part}" for part in ("weight", "bias") for place in
             ["norm_pos", *(f"blocks.{block}.norm_pos" for block in range(1, 12))]}  # fmt: skip
    assert ours == theirs - {"cls_token"} | norms


@pytest.mark.parametrize("class_row", [False, True])
def test_sinusoids_follow_their_papers(class_row: bool) -> None:
    scheme = "lape" if class_row else "mpvg"
    width, (rows, columns) = SMALL["embed_dim"], (4, 4)

    one = timm.create_model("mpvg_vit_nano", scheme=scheme, pos_embed="sincos1d", **SMALL)
    expected = np.array(
        [
            [(math.sin, math.cos)[j % 2](p / 10000 ** (2 * (j // 2) / width)) for j in range(width)]
            for p in range(rows * columns + class_row)
        ]
    )
    np.testing.assert_allclose(one.pos_embed[0].detach(), expected, atol=1e-6)

    two = timm.create_model("mpvg_vit_nano", scheme=scheme, pos_embed="sincos2d", **SMALL)
    omega = 1 / 10000 ** (np.arange(width // 4) / (width / 4))
    grid = [
        np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)])
        for y in range(rows)
        for x in range(columns)
    ]
    np.testing.assert_allclose(two.pos_embed[0].detach(), [np.zeros(width)] * class_row + grid, atol=1e-6)
    for model in (one, two):
        assert not model.pos_embed.requires_grad


@pytest.mark.parametrize("scheme", ["default", "lape", "mpvg"])
def test_positions_need_no_image_and_resample_first(scheme: str) -> None:
    model = small(scheme)
    rows = 17 if model.has_class_token else 16
    at_home = model.positions()
    assert at_home.initial is model.pos_embed
    assert [table is None for table in at_home.blocks] == [source is None for source in model.plan.blocks]
    assert all(table.shape == (1, rows, 24) for table in at_home.blocks if table is not None)
    assert (at_home.last is None) == (scheme != "mpvg")

    away = model.positions((6, 3))
    table = resample_abs_pos_embed(model.pos_embed, (6, 3), (4, 4), num_prefix_tokens=int(model.has_class_token))
    assert torch.equal(away.initial, table)
    for block, source in enumerate(model.plan.blocks):
        if source == "initial":
            assert torch.equal(away.blocks[block], model.blocks[block].norm_pos(table))


def test_no_positions() -> None:
    model = small("gap:join_input=false", pos_embed="none")
    assert model.positions() == (None, [None] * 4, None)
    x = images(1, 2, 16, 16)
    shuffled = torch.cat([x[..., 8:], x[..., :8]], dim=-1)  # whole patches change places
    torch.testing.assert_close(model(x), model(shuffled), rtol=1e-4, atol=1e-5)
    assert (small("gap")(x) - small("gap")(shuffled)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "mpvg", "class_token": True}, r"class_token=True contradicts scheme 'mpvg'"),
        ({"scheme": "default", "class_token": False}, r"class_token=False contradicts"),
        ({"scheme": "mpvg", "global_pool": "token"}, r"global_pool='token' contradicts scheme 'mpvg'"),
        ({"scheme": "lape", "global_pool": "avg"}, r"global_pool='avg' contradicts scheme 'lape'"),
        ({"scheme": "mpvg", "global_pool": "max"}, r"global_pool='max' contradicts scheme 'mpvg'"),
        ({"scheme": "mpvg", "pool_include_prefix": True}, r"pool_include_prefix=True"),
        ({"scheme": "mpvg", "pos_embed": "none"}, r"pos_embed='none' with scheme 'mpvg'"),
        ({"scheme": "gap", "pos_embed": "none"}, r"pos_embed='none' with scheme 'gap'"),
        ({"scheme": "gap:join_input=false"}, r"nothing would read the table"),
        ({"scheme": "mpvg", "pos_embed": "rope"}, r"pos_embed='rope'.*learn"),
        ({"scheme": "mpvg", "pos_embed": "sincos2d", "embed_dim": 30}, r"embed_dim=30"),
        ({"scheme": "mpvg:last_norm=12"}, r"last_norm=12.*depth=4"),
        ({"scheme": "mpgv"}, r"did you mean 'mpvg'"),
        ({"scheme": "mpvg", "block_fn": ParallelThingsBlock}, r"ParallelThingsBlock.*block_fn"),
    ],
)
def test_contradictions_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("mpvg_deit_tiny_patch16_224", **{**SMALL, **arguments})


def test_unknown_keywords_are_refused() -> None:
    with pytest.raises(TypeError, match="shceme"):
        timm.create_model("mpvg_deit_tiny_patch16_224", shceme="mpvg")


@pytest.mark.parametrize("scheme", ["default", "mpvg"])
def test_patch_dropout_keeps_each_patch_with_its_position(scheme: str) -> None:
    model = small(scheme, patch_drop_rate=0.5, reg_tokens=1).train()
    x = images(2, 2, 16, 16)
    torch.manual_seed(0)
    tokens, positions, _ = model.embed(x)
    prefix = model.num_prefix_tokens
    assert tokens.shape[1] == prefix + 8
    if scheme == "mpvg":
        full = model.positions().blocks[2][0]
        for row in positions.blocks[2][:, prefix:].flatten(0, 1):
            assert (full - row).abs().sum(dim=1).min() == 0
        assert torch.equal(positions.blocks[2][:, :prefix], torch.zeros(2, prefix, 24))
    model(x).sum().backward()


def test_checkpoint_with_another_grid_and_class_token_is_fitted(tmp_path: Path) -> None:
    donor: Any = perturb(timm.create_model("deit_tiny_patch16_224", **{**SMALL, "img_size": 32})).eval()
    torch.save(donor.state_dict(), tmp_path / "donor.pth")
    model: Any = timm.create_model(
        "mpvg_deit_tiny_patch16_224", scheme="gap", pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "donor.pth"), "num_classes": 7, "input_size": (2, 32, 32)},
        **SMALL,
    )  # fmt: skip
    expected = resample_abs_pos_embed(donor.pos_embed[:, 1:], (4, 4), (8, 8), num_prefix_tokens=0)
    torch.testing.assert_close(model.pos_embed, expected)
    torch.testing.assert_close(model.blocks[2].attn.qkv.weight, donor.blocks[2].attn.qkv.weight)


def test_a_table_that_no_grid_explains_is_refused() -> None:
    model = small("gap")
    with pytest.raises(ValueError, match=r"15 rows.*4 x 4"):
        mpvg.models.weights.filter_checkpoint({"pos_embed": torch.zeros(1, 15, 24)}, model)


class TestFacts:
    """What follows from the formulas (the project's method notes, section 5)."""

    def test_the_last_norm_term_is_a_constant_after_pooling(self) -> None:
        model = small("mpvg", dtype=torch.float64)
        x = images(3, 2, 16, 16, dtype=torch.float64)
        with_term = model.forward_head(model.forward_features(x), pre_logits=True)
        constant = model.positions().last.mean(dim=1)
        model.norm_pos = None
        without = model.forward_head(model.forward_features(x), pre_logits=True)
        torch.testing.assert_close(with_term - without, constant.expand(3, -1), rtol=0, atol=1e-12)

    def test_beta_equals_its_twin_through_training(self) -> None:
        torch.manual_seed(0)
        model: Any = timm.create_model("mpvg_deit_tiny_patch16_224", **SMALL).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
        for step in range(50):
            loss = torch.nn.functional.cross_entropy(
                model(images(8, 2, 16, 16, seed=step, dtype=torch.float64)), torch.arange(8) % 7
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert model.norm.bias.abs().max() > 1e-3
        torch.testing.assert_close(model.norm.bias, model.norm_pos.bias, rtol=0, atol=1e-14)
        assert not torch.equal(model.norm.weight, model.norm_pos.weight)


class TestFold:
    @pytest.mark.parametrize("scheme", [*mpvg.SCHEMES, "mpvg:last_norm=3", "mpvg:hierarchical=false,join_input=false"])
    @pytest.mark.parametrize("changes", [{}, {"num_classes": 0}, {"global_pool": ""}, {"reg_tokens": 2}], ids=str)
    def test_a_folded_model_computes_the_same(self, scheme: str, changes: dict[str, Any]) -> None:
        model = small(scheme, **changes).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        folded = mpvg.fold(model)
        x = images(4, 2, 16, 16)
        with torch.no_grad():
            assert relative(folded(x), model.eval()(x)) <= 1e-6
        assert not folded.training
        assert not [name for name in folded.state_dict() if "norm_pos" in name]
        assert not [name for name, _ in folded.named_modules() if "norm_pos" in name]
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert mpvg.fold(folded) is folded
        for stored, table in zip(folded.positions().blocks, model.positions().blocks, strict=True):
            assert (stored is None and table is None) or torch.equal(stored, table)

    @pytest.mark.parametrize("scheme", ["mpvg", "gap_last", "pvg_cls:last_norm=2"])
    def test_tokens_keep_the_last_term(self, scheme: str) -> None:
        model, x = small(scheme), images(2, 2, 16, 16)
        folded = mpvg.fold(model)
        with torch.no_grad():
            assert relative(folded.forward_features(x), model.forward_features(x)) <= 1e-6
            final, taken = folded.forward_intermediates(x, indices=[3], norm=True)
            expected_final, expected = model.forward_intermediates(x, indices=[3], norm=True)
            assert relative(final, expected_final) <= 1e-6
            assert relative(taken[0], expected[0]) <= 1e-6
            assert relative(folded.forward_head(folded.forward_features(x)), folded(x)) <= 1e-6
            for headless in (folded, model):
                headless.reset_classifier(0)
            assert relative(folded(x), model(x)) <= 1e-6
            for pruned in (folded, model):
                pruned.prune_intermediate_layers([1], prune_norm=True)
            assert relative(folded.forward_features(x), model.forward_features(x)) <= 1e-6

    def test_the_term_costs_a_classifier_nothing(self) -> None:
        """The folded graph of mpvg has as many additions as that of pvg."""

        def additions(scheme: str) -> int:
            program = torch.export.export(mpvg.fold(small(scheme)), (images(2, 2, 16, 16),))
            return sum("add" in str(node.target) for node in program.graph.nodes if node.op == "call_function")

        assert additions("mpvg") == additions("pvg") == additions("gap") + SMALL["depth"] - 1

    def test_features_only(self) -> None:
        features = timm.create_model("mpvg_vit_nano", features_only=True, out_indices=(1, 3), img_size=16)
        perturb(features)
        x = images(2, 3, 16, 16)
        folded = mpvg.fold(features)
        assert not [name for name in folded.state_dict() if "norm_pos" in name]
        for actual, expected in zip(folded(x), features.eval()(x), strict=True):
            assert relative(actual, expected) <= 1e-6

    def test_norms_without_bias(self) -> None:
        model = small("mpvg", norm_layer="rmsnorm", num_classes=0)
        x = images(2, 2, 16, 16)
        assert relative(mpvg.fold(model)(x), model(x)) <= 1e-6

    def test_a_folded_model_travels(self, tmp_path: Path) -> None:
        folded = mpvg.fold(small("mpvg"))
        x = images(2, 2, 16, 16)
        for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
            assert torch.equal(twin(x), folded(x))
            assert mpvg.fold(twin) is twin
        other = mpvg.fold(small("mpvg:last_norm=2"))
        other.load_state_dict(folded.state_dict())
        assert torch.equal(other(x), folded(x))

    def test_another_size_is_refused(self) -> None:
        folded = mpvg.fold(small("mpvg", dynamic_img_size=True))
        assert folded(images(1, 2, 16, 16)).shape == (1, 7)
        with pytest.raises(AssertionError, match="32"):
            folded(images(1, 2, 32, 16))
        with pytest.raises(ValueError, match=r"grid_size=\(8, 4\)"):
            folded.positions((8, 4))
        with pytest.raises(ValueError, match="Resize the unfolded model"):
            folded.set_input_size(img_size=(32, 32))

    def test_other_models_are_refused(self) -> None:
        with pytest.raises(ValueError, match="ResNet"):
            mpvg.fold(timm.create_model("resnet18"))
