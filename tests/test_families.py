"""ViT-Lite, T2T-ViT, CeiT and Swin: parameter counts, initialisation, positions, sizes, and what they refuse."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath, resample_abs_pos_embed
from torch import nn

from families import CEIT, FAMILIES, SWIN, T2T, VIT_LITE, Family, build, inputs
from helpers import images, perturb, relative
from mpvg import fold, load_official
from mpvg.cli import main
from mpvg.models.mpvg_t2t import Performer, features, full_attention
from mpvg.models.weights import filter_checkpoint

COUNTS = {  # (model, classes): parameters under default, lape, pvg and mpvg
    ("mpvg_swin_tiny_patch4_window7_224", 1000): (28_589_410, 28_598_242, 28_598_242, 28_599_778),
    ("mpvg_ceit_tiny_patch16_224", 1000): (6_356_904, 6_361_896, 6_361_128, 6_361_512),
    ("mpvg_t2t_vit_7", 1000): (4_310_222, 4_313_806, 4_312_782, 4_313_294),
    ("mpvg_vit_lite_7_4_32", 100): (3_740_004, 3_743_588, 3_742_564, 3_743_076),
    ("mpvg_t2t_vit_7", 100): (4_078_922, 4_082_506, 4_081_482, 4_081_994),
}


@pytest.mark.parametrize(("name", "classes"), COUNTS)
def test_parameter_counts(name: str, classes: int) -> None:
    for scheme, count in zip(("default", "lape", "pvg", "mpvg"), COUNTS[name, classes], strict=True):
        model = timm.create_model(name, scheme=scheme, num_classes=classes, device="meta")
        assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_frozen_parameters_of_t2t() -> None:
    model: Any = timm.create_model("mpvg_t2t_vit_7", scheme="default", device="meta")
    frozen = {name: parameter.numel() for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        "pos_embed": 197 * 256,
        "patch_embed.proj.attention1.w": 32 * 64,
        "patch_embed.proj.attention2.w": 32 * 64,
    }


def test_the_papers_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--paper", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 32
    assert [(cell["architecture"], cell["method"]) for cell in found if not cell["matches"]] == [
        ("DeiT-Ti", "LaPE"),
        ("Swin-Ti", "LaPE"),
        ("ViT-Lite-7/4, CIFAR-100", "LaPE"),
    ]
    for cell in found:
        assert cell["matches"] == (math.floor(cell["parameters"] / 1000) == round(float(cell["paper_millions"]) * 1000))
        assert bool(cell["reason"]) != cell["matches"]
    assert main(["models", "--paper"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("differs: ") == 3
    assert "29 of 32" in printed


def test_swin_without_a_table_is_timms_own() -> None:
    theirs = perturb(timm.create_model("swin_tiny_patch4_window7_224"), std=0.1).eval()
    ours: Any = timm.create_model(
        "mpvg_swin_tiny_patch4_window7_224", scheme="gap:join_input=false", pos_embed="none"
    ).eval()
    ours.load_state_dict(theirs.state_dict())
    x = images(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


class TestInitialisation:
    """As each architecture's official code has it."""

    @staticmethod
    def start(name: str, scheme: str = "lape") -> Any:
        torch.manual_seed(0)
        return timm.create_model(name, scheme=scheme)

    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
    def test_linear_layers_and_norms(self, family: Family) -> None:
        for name, module in self.start(family.models[0]).named_modules():
            if isinstance(module, nn.Linear):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.06), name
                assert abs(module.weight.mean().item()) < 1e-3, name
                beyond = (module.weight.abs() > 0.04).float().mean().item()
                assert beyond == pytest.approx(0.0455, rel=0.15), name  # two standard deviations: it is a normal one
                assert module.bias is None or not module.bias.any(), name
            elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                assert torch.equal(module.weight, torch.ones_like(module.weight)), name
                assert not module.bias.any(), name
            elif isinstance(module, nn.Conv2d) and family is not VIT_LITE:  # PyTorch's own: uniform
                fan_in = module.weight[0].numel()
                assert module.weight.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.06), name
                assert module.weight.abs().max() <= 1 / math.sqrt(fan_in), name

    @pytest.mark.parametrize(
        ("family", "eps"), [(VIT_LITE, 1e-5), (T2T, 1e-5), (CEIT, 1e-6), (SWIN, 1e-5)], ids=lambda part: str(part)[:30]
    )
    def test_all_norms_have_the_familys_eps(self, family: Family, eps: float) -> None:
        found = {
            module.eps for module in self.start(family.models[0], "mpvg").modules() if isinstance(module, nn.LayerNorm)
        }
        assert found == {eps}

    def test_vit_lite(self) -> None:
        model = self.start("mpvg_vit_lite_7_4_32")
        assert model.pos_embed.std().item() == pytest.approx(0.2, rel=0.03)
        assert not model.cls_token.any()
        kernel = model.patch_embed.proj.weight
        assert kernel.std().item() == pytest.approx(math.sqrt(2 / kernel[0].numel()), rel=0.03)
        assert kernel.abs().max() > 3 * kernel.std()  # normal, not uniform
        assert model.blocks[3].attn.attn_drop.p == 0.1
        assert model.blocks[6].drop_path1.drop_prob == pytest.approx(0.1)

    def test_t2t(self) -> None:
        model = self.start("mpvg_t2t_vit_7")
        assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.1)
        for layer in (model.patch_embed.proj.attention1, model.patch_embed.proj.attention2):
            torch.testing.assert_close(layer.w @ layer.w.T, 32 * torch.eye(32), rtol=0, atol=1e-4)
            assert (layer.dp.p, layer.mlp[3].p) == (0.1, 0.1)

    def test_ceit(self) -> None:
        model = self.start("mpvg_ceit_tiny_patch16_224")
        assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.03)
        assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
        assert not model.lca.pos_embed.any()
        assert not torch.equal(model.lca.attn.qkv.weight, model.blocks[0].attn.qkv.weight)

    def test_swin(self) -> None:
        model = self.start("mpvg_swin_tiny_patch4_window7_224")
        assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.03)
        assert model.layers[3].blocks[1].attn.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.05)


class TestTraining:
    @pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
    @pytest.mark.parametrize("branch", ["drop_path1", "drop_path2"])
    def test_drop_path_is_on_both_branches(self, family: Family, branch: str) -> None:
        """A branch that is always dropped is a branch whose last layer puts out zero."""
        model = build(family, "mpvg", drop_path_rate=0.5).train()
        x, zeroed = inputs(family), []
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        for block in model.all_blocks():
            if isinstance(block.drop_path2, nn.Identity):  # the first, whose rate is zero
                block.drop_path1, block.drop_path2 = DropPath(0.0), DropPath(0.0)
            getattr(block, branch).drop_prob = 1.0
            last = block.attn.proj if branch == "drop_path1" else getattr(block.mlp, "fc2", None) or block.mlp.bn3
            zeroed += [last.weight, last.bias]
        dropped = model(x)
        for module in model.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        assert relative(model(x), dropped) > 1e-3
        with torch.no_grad():
            for parameter in zeroed:
                parameter.zero_()
        torch.testing.assert_close(model(x), dropped)

    def test_lca_drops_no_path(self) -> None:
        lca = build(CEIT, "default", drop_path_rate=0.5).lca
        assert isinstance(lca.drop_path1, nn.Identity)
        assert isinstance(lca.drop_path2, nn.Identity)

    def test_a_performer_has_two_dropouts(self) -> None:
        layer = Performer(6, 8).train()
        x = images(2, 5, 6)
        kqv: list[torch.Tensor] = []
        layer.kqv.register_forward_hook(lambda *args: kqv.append(args[2]))
        for first, second in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
            layer.dp, layer.mlp[3] = nn.Dropout(first), nn.Dropout(second)
            y = layer(x)
            k, q, v = kqv[-1].chunk(3, dim=-1)
            attended = v if first else v + layer.proj(full_attention(k, q, v, layer.w))
            branch = layer.mlp[2](layer.mlp[1](layer.mlp[0](layer.norm2(attended))))
            torch.testing.assert_close(y, attended if second else attended + branch)


class TestT2T:
    def test_the_tests_weights_give_the_performers_something_to_divide_by(self) -> None:
        model = build(T2T, "default")
        totals: list[torch.Tensor] = []

        def keep_total(w: torch.Tensor, kqv: torch.Tensor) -> None:
            k, q, _ = kqv.chunk(3, dim=-1)
            totals.append((features(q, w) @ features(k, w).sum(dim=1).unsqueeze(-1)).min())

        for layer in (model.patch_embed.proj.attention1, model.patch_embed.proj.attention2):
            layer.kqv.register_forward_hook(lambda module, args, kqv, w=layer.w: keep_total(w, kqv))
        model(inputs(T2T))
        assert len(totals) == 2
        assert min(totals) > 1e-4

    def test_features_are_computed_in_float32(self) -> None:
        k, q, v, w = images(2, 9, 8, seed=1), images(2, 9, 8, seed=2), images(2, 9, 8, seed=3), images(4, 8, seed=4)
        expected = full_attention(k, q, v, w)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative(full_attention(k, q, v, w), expected) < 1e-6
        halves = [part.bfloat16() for part in (k, q, v)]
        assert torch.equal(full_attention(*halves, w), full_attention(*(h.float() for h in halves), w).bfloat16())

    def test_no_constant_is_so_small_that_an_exporter_drops_it(self) -> None:
        program = torch.export.export(Performer(6, 8).eval(), (images(2, 5, 6),))
        constants = [arg for node in program.graph.nodes for arg in node.args if isinstance(arg, float)]
        assert constants
        assert all(abs(constant) > 1e-7 for constant in constants)

    def test_the_official_epsilon(self) -> None:
        """Where next to nothing is attended, next to nothing is read: phi . phi is far below 1e-8."""
        k = q = 6 * torch.ones(1, 2, 8)
        v, w = images(1, 2, 8), torch.zeros(4, 8)
        phi = math.exp(-0.5 * 8 * 36) ** 2 / 4 * 4 * 2
        assert phi < 1e-100
        assert full_attention(k.double(), q.double(), v.double(), w).abs().max() < 1e-90
        small = torch.full((1, 2, 8), 1.5).double()
        total = math.exp(-0.5 * 8 * 2.25) ** 2 * 2
        expected = v.double().mean(1, keepdim=True) * total / (total + 1e-8)
        torch.testing.assert_close(full_attention(small, small, v.double(), w), expected.expand(-1, 2, -1))
        assert total < 1e-7


class TestCeiT:
    def test_positions_have_one_entry_more(self) -> None:
        model = build(CEIT, "mpvg")
        model.lca.pos_embed.data.normal_()
        received = model.positions().blocks
        assert len(received) == CEIT.depth + 1
        assert torch.equal(received[-1], model.lca.norm_pos(model.lca.pos_embed))
        assert received[-1].shape == (1, CEIT.depth, 24)
        assert model.positions((3, 2)).blocks[-1].shape == received[-1].shape
        assert build(CEIT, "gap").positions().blocks[-1] is None

    def test_the_zero_table_has_finite_gradients(self) -> None:
        torch.manual_seed(0)
        model: Any = timm.create_model("mpvg_ceit_tiny_patch16_224", scheme="mpvg", **CEIT.shrunken)
        assert not model.lca.pos_embed.any()
        model(inputs(CEIT)).square().sum().backward()
        assert model.lca.pos_embed.grad.isfinite().all()
        assert model.lca.pos_embed.grad.any()

    def test_a_table_that_nothing_reads_is_not_made(self) -> None:
        assert build(CEIT, "gap_last:join_input=false").lca.pos_embed is None

    def test_grid_is_not_taken_for_a_square(self) -> None:
        """A wide image is another one than the tall image of as many tokens."""
        model = build(CEIT, "default", dynamic_img_size=True)
        tall, wide = model(inputs(CEIT, size=(64, 16))), model(inputs(CEIT, size=(16, 64)))
        assert (tall - wide).abs().max() > 1e-3


class TestSwin:
    def test_positions_are_maps_of_each_blocks_resolution(self) -> None:
        model = build(SWIN, "mpvg")
        found = model.positions()
        assert found.initial.shape == (1, 16, 16, 12)
        sizes = [(1, 16, 16, 12)] * 2 + [(1, 8, 8, 24)] + [(1, 4, 4, 48)] * 2
        assert [tuple(table.shape) for table in found.blocks] == sizes
        assert found.last.shape == (1, 4, 4, 48)
        assert model.positions((32, 16)).blocks[2].shape == (1, 16, 8, 24)
        assert [table is None for table in build(SWIN, "mpvg:first_block=false").positions().blocks] == [True] + [
            False
        ] * 4

    def test_positions_that_nobody_reads_are_not_merged(self) -> None:
        """Of two maps that travel, mpvg needs both, pvg one and gap none."""
        for scheme, merged in (("mpvg", 4), ("pvg", 2), ("gap", 0), ("gap_last", 2), ("mpvg:hierarchical=false", 4)):
            model = build(SWIN, scheme)
            calls: list[int] = []
            for stage in model.layers[1:]:
                stage.downsample.register_forward_hook(lambda *args, calls=calls: calls.append(1))
            model.positions()
            assert len(calls) == merged, scheme

    def test_maps_larger_than_a_window_are_shifted_where_the_built_size_was_not(self) -> None:
        dynamic = build(SWIN, "mpvg", dynamic_img_size=True)
        built = build(SWIN, "mpvg", img_size=(128, 64))
        built.load_state_dict({**dynamic.state_dict(), "pos_embed": dynamic.positions((32, 16)).initial})
        assert built.layers[2].blocks[1].shift_size == (2, 0)
        x = inputs(SWIN, size=(128, 64))
        torch.testing.assert_close(dynamic(x), built(x), rtol=1e-5, atol=1e-5)

    def test_folding_stores_the_masks_of_its_one_size(self) -> None:
        dynamic = build(SWIN, "mpvg", dynamic_img_size=True)
        dynamic(inputs(SWIN, size=SWIN.wide))  # where the last stage is shifted
        expected = dynamic(inputs(SWIN))
        folded = fold(dynamic)
        masks = [block.attn_mask is not None for block in folded.all_blocks()]
        assert masks == [False, True, False, False, False]
        assert not any(block.dynamic_mask for block in folded.all_blocks())
        assert relative(folded(inputs(SWIN)), expected) < 1e-6

    def test_a_size_that_does_not_fit_changes_nothing(self) -> None:
        model, x = build(SWIN, "mpvg"), inputs(SWIN)
        before = model(x)
        with pytest.raises(ValueError, match="windows of 4 x 4"):
            model.set_input_size(img_size=80, window_size=4)
        assert torch.equal(model(x), before)


SIZES = {
    ("mpvg_t2t_vit_7", 100): r"100 x 100 pixels cannot be cut into patches of 16 x 16",
    ("mpvg_ceit_tiny_patch16_224", 200): r"200 x 200 pixels cannot be cut into patches of 16 x 16",
    ("mpvg_vit_lite_7_4_32", 30): r"30 x 30 pixels cannot be cut into patches of 4 x 4",
    ("mpvg_swin_tiny_patch4_window7_224", 100): r"100 x 100 pixels cannot be cut into patches of 32 x 32",
    ("mpvg_swin_tiny_patch4_window7_224", 256): r"stage 0 a map of 64 x 64.*windows of 7 x 7.*window_size=\(8, 8\)",
    ("mpvg_swin_tiny_patch4_window7_224", (224, 256)): r"56 x 64.*multiples of 224 x 224.*window_size=\(7, 8\)",
}


@pytest.mark.parametrize(("name", "img_size"), SIZES)
def test_sizes_that_cannot_be_divided_are_refused(name: str, img_size: Any) -> None:
    with pytest.raises(ValueError, match=SIZES[name, img_size]):
        timm.create_model(name, img_size=img_size)
    model: Any = timm.create_model(name, dynamic_img_size=True).eval()
    size = img_size if isinstance(img_size, tuple) else (img_size, img_size)
    with pytest.raises(ValueError, match=SIZES[name, img_size]):
        model(torch.zeros(1, 3, *size))


def test_the_remedy_for_windows_works() -> None:
    model: Any = timm.create_model("mpvg_swin_tiny_patch4_window7_224", img_size=(224, 256), window_size=(7, 8)).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 224, 256)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        (SWIN, {"scheme": "mpvg", "pos_embed": "none"}, r"pos_embed='none' with scheme 'mpvg'.*relative.*out of scope"),
        *((family, {"scheme": "mpvg", "img_size": 0}, r"images of 0 x 0 pixels") for family in FAMILIES),
        (SWIN, {"scheme": "mpvg", "pos_embed": "rope"}, r"pos_embed='rope'.*rotary positions are out of scope"),
        (T2T, {"scheme": "mpvg", "pos_embed": "relative"}, r"pos_embed='relative'.*Relative.*out of scope"),
        (SWIN, {"scheme": "mpvg:last_norm=5"}, r"last_norm=5.*depth=5"),
        (SWIN, {"scheme": "gap", "global_pool": "max"}, r"global_pool='max' contradicts"),
        (T2T, {"scheme": "mpvg", "patch_size": 8}, r"patch_size=\(8, 8\).*16"),
        (CEIT, {"scheme": "mpvg", "patch_size": (16, 8)}, r"patch_size=\(16, 8\)"),
        (CEIT, {"scheme": "mpvg", "pre_norm": True}, r"pre_norm=True"),
        (CEIT, {"scheme": "default", "reg_tokens": 2}, r"reg_tokens=2"),
        (CEIT, {"scheme": "default", "patch_drop_rate": 0.5}, r"patch_drop_rate=0\.5"),
        (CEIT, {"scheme": "default", "proj_drop_rate": 0.1}, r"proj_drop_rate=0\.1"),
    ],
)
def test_what_has_no_meaning_is_refused(family: Family, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model(family.models[0], **{**family.shrunken, **arguments})


def test_a_patch_size_cannot_be_changed_later() -> None:
    with pytest.raises(ValueError, match=r"patch_size=\(8, 8\)"):
        build(T2T, "mpvg").set_input_size(img_size=32, patch_size=8)


def test_timms_checkpoints_of_swin_are_fitted() -> None:
    donor: Any = perturb(timm.create_model("swin_tiny_patch4_window7_224"))
    model: Any = timm.create_model("mpvg_swin_tiny_patch4_window7_224", scheme="gap:join_input=false", pos_embed="none")
    load_official(model, donor.state_dict())
    assert torch.equal(model.layers[2].downsample.reduction.weight, donor.layers[2].downsample.reduction.weight)


def test_tables_are_resampled_from_the_grid_that_they_have() -> None:
    """A Swin's table tells its grid; an official table is square even where its rows are as many as the model's."""
    wide, tall = build(SWIN, "mpvg", img_size=(64, 256)), build(SWIN, "mpvg", img_size=(256, 64))
    found = filter_checkpoint(wide.state_dict(), tall)["pos_embed"]
    rows = resample_abs_pos_embed(wide.pos_embed.flatten(1, 2), (64, 16), (16, 64), num_prefix_tokens=0)
    assert torch.equal(found, rows.unflatten(1, (64, 16)))

    square, flat = build(VIT_LITE, "default"), build(VIT_LITE, "default", img_size=(8, 32))
    load_official(flat, square.state_dict())
    assert torch.equal(flat.pos_embed, resample_abs_pos_embed(square.pos_embed, (2, 8), (4, 4), num_prefix_tokens=1))


@pytest.mark.parametrize("do", [fold, lambda model: load_official(model, {})])
def test_models_of_relative_positions_only_are_out_of_scope(do: Any) -> None:
    with pytest.raises(ValueError, match=r"SwinTransformerV2.*relative or rotary are out of scope"):
        do(timm.create_model("swinv2_tiny_window8_256", device="meta"))
