"""What a converted model can do: fold, compile, travel, change its size, and give features, as timm's can."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from conversion import build, converted, inputs, known
from helpers import images, perturb, relative, small
from mpvg import convert, create_model, fold, save

SAMPLES = known(
    (
        "vit_base_patch16_clip_224",  # pre-norm, class token
        "test_vit2",  # registers with rows, norm after pooling, dynamic
        "vit_medium_patch16_reg4_gap_256",  # registers, norm after pooling
        "vit_base_patch16_siglip_224",  # pooling by attention
        "beit3_base_patch16_224",  # an unread class token
        "vit_intern300m_patch14_448",  # no Last LN, dynamic
        "vit_dwee_patch16_reg1_gap_256",  # DiffAttention
        "vit_tiny_r_s16_p8_224",  # hybrid
        "vit_so400m_patch14_siglip_384",  # an image that is cut
        "swin_tiny_patch4_window7_224",
    )
)


def opened(name: str, scheme: str = "mpvg", **changes: Any) -> Any:
    """Return a converted model whose gates are open and whose position norms are anything."""
    return perturb(converted(build(name, **changes), scheme), std=0.1).eval()


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("scheme", ["mpvg", "lape_gap"])
def test_folded(name: str, scheme: str) -> None:
    model = opened(name, scheme)
    folded, x = fold(model), inputs(model)
    with torch.no_grad():
        assert relative(folded(x), model(x)) <= 1e-6
        assert relative(folded.forward_features(x), model.forward_features(x)) <= 1e-6
        assert not [key for key in folded.state_dict() if "norm_pos" in key or "ls_pos" in key]
        gate = next(block.ls_pos for block in model.all_blocks() if block.norm_pos is not None)
        gate.gamma += 1
        assert relative(fold(model)(x), folded(x)) > 1e-6


@pytest.mark.parametrize("name", SAMPLES)
def test_features_then_head_is_the_whole(name: str) -> None:
    model = opened(name)
    x = inputs(model)
    with torch.no_grad():
        assert relative(model.forward_head(model.forward_features(x)), model(x)) <= 1e-6
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(0)
        assert relative(model(x), pooled) <= 1e-6


def test_the_head_alone_knows_one_grid() -> None:
    model = opened("test_vit2")
    features = model.forward_features(images(1, 3, 96, 64))
    with pytest.raises(ValueError, match=r"25 tokens.*set_input_size"):
        model.forward_head(features)


@pytest.mark.parametrize("name", SAMPLES)
def test_torchscript(name: str) -> None:
    model = opened(name)
    x = inputs(model)
    assert relative(torch.jit.script(model)(x), model(x)) < 1e-6


def test_export() -> None:
    model = opened("vit_medium_patch16_reg4_gap_256")
    x, batch = inputs(model, batch=3), torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (inputs(model),), dynamic_shapes=({0: batch},))
    assert relative(program.module()(x), model(x)) < 1e-5


@pytest.mark.slow
def test_compile() -> None:
    torch._dynamo.reset()
    model = opened("vit_base_patch16_siglip_224")
    x = inputs(model)
    assert relative(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x)) < 1e-5


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("test_vit", "default"),
        ("test_vit2", "gap"),
        ("test_vit4", "gap"),
        ("deit3_small_patch16_224", "default"),
        ("vit_base_patch14_reg4_dinov2", "default"),
        ("vit_so150m_patch16_reg4_gap_256", "gap"),
        ("beit3_base_patch16_224", "gap"),
        ("vit_base_patch16_siglip_224", "gap"),
        ("vit_tiny_r_s16_p8_224", "default"),
        ("vit_so400m_patch14_siglip_384", "gap"),
    ],
)
@pytest.mark.parametrize("dynamic", [True, False])
def test_another_size_is_as_in_timm(name: str, scheme: str, dynamic: bool) -> None:
    """Tables are resampled alike, to grids that are not square."""
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    source = build(name, **({"dynamic_img_size": True} if dynamic else {}))
    ours = convert(source, scheme)
    step = source.patch_embed.feat_ratio(as_scalar=False)
    size = (6 * step[0], 3 * step[1])
    x = images(2, 3, *size)
    with torch.no_grad():
        if not dynamic:
            source.set_input_size(img_size=size)
            ours.set_input_size(img_size=size)
        expected = source(x)
        assert relative(ours(x), expected) <= 1e-6
        assert relative(ours(x.flip(-1)), expected) > 1e-3


def test_sizes_of_swin() -> None:
    source = build("swin_tiny_patch4_window7_224")
    ours, x = convert(source, "gap"), images(2, 3, 128, 64)
    for model in (source, ours):
        model.set_input_size(img_size=(128, 64), window_size=2)
    with torch.no_grad():
        assert relative(ours(x), source(x)) <= 1e-6
    loose = build("swin_tiny_patch4_window7_224", strict_img_size=False)
    with torch.no_grad():
        assert relative(convert(loose, "gap")(x), loose(x)) <= 1e-6


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_vit2", "swin_tiny_patch4_window7_224"])
def test_features_only(name: str) -> None:
    base = build(name)
    recipe: dict[str, Any] = {"base": name, "base_args": arguments_of(base), "scheme": "mpvg"}
    whole = perturb(timm.create_model("mpvg", **recipe), std=0.1).eval()
    features = timm.create_model("mpvg", **recipe, features_only=True, out_indices=(0, 2)).eval()
    missing, unexpected = features.model.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    assert all("norm" in key or "head" in key or "blocks" in key or "layers" in key for key in unexpected)
    x = inputs(base)
    with torch.no_grad():
        expected = whole.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
        for actual, wanted in zip(features(x), expected, strict=True):
            assert torch.equal(actual, wanted)
        for actual, wanted in zip(fold(features)(x), expected, strict=True):
            assert relative(actual, wanted) <= 1e-6


def arguments_of(model: Any) -> dict[str, Any]:
    """Return what makes a small model small, as arguments of timm."""
    size = {"img_size": model.patch_embed.img_size, "num_classes": 7, "embed_dim": model.embed_dim}
    if hasattr(model, "layers"):
        depths = [len(stage.blocks) for stage in model.layers]
        return {**size, "window_size": 2, "depths": depths, "num_heads": [2, 2, 4, 4]}
    return {**size, "depth": len(model.blocks), "num_heads": model.blocks[0].attn.num_heads}


def test_one_of_ours_comes_back_from_its_folder(tmp_path: Path) -> None:
    """By timm, by us, and as where the next training starts."""
    model = perturb(convert(small("gap", name="mpvg_vit_nano", in_chans=3), "pvg")).eval()
    save(model, tmp_path)
    x = images(2, 3, 16, 16)
    for again in (
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True),
        create_model(f"local-dir:{tmp_path}", scheme="pvg", pretrained=True),
    ):
        assert torch.equal(again.eval()(x), model(x))
    token = convert(small("gap", name="mpvg_vit_nano", in_chans=3), "pvg_cls", allow_readout_change=True).eval()
    save(token, tmp_path)
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), token(x))


def test_a_pooling_goes_to_the_base() -> None:
    """Create and convert are one act: the pooling that is asked for is the base's, with all that timm makes of it."""
    arguments: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 2, "num_classes": 3, "img_size": 32}
    for pooled in ({"global_pool": "avg", "class_token": False}, {"global_pool": "avg"}, {"global_pool": "map"}):
        source = timm.create_model("vit_tiny_patch16_224", **arguments, **pooled)
        model = create_model("vit_tiny_patch16_224", scheme="pvg", **arguments, **pooled)
        expected = convert(source, "pvg", preserve=False, allow_readout_change=True)
        assert model.state_dict().keys() == expected.state_dict().keys()
        assert model.global_pool == expected.global_pool == pooled["global_pool"]
    with pytest.raises(ValueError, match=r"global_pool='avg' contradicts scheme 'lape'"):
        create_model("vit_tiny_patch16_224", scheme="lape", global_pool="avg")
    with pytest.raises(ValueError, match=r"global_pool='token' contradicts scheme 'mpvg'"):
        create_model("vit_tiny_patch16_224", scheme="mpvg", global_pool="token")
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224: .* do not go together"):
        create_model("vit_tiny_patch16_224", scheme="mpvg", global_pool="foo")


def test_a_pooling_is_heeded_where_the_base_is_ours() -> None:
    model = timm.create_model("mpvg", base="mpvg_vit_nano", scheme="mpvg", img_size=16, global_pool="")
    assert model.global_pool == ""
    assert model(images(1, 3, 16, 16)).shape == (1, 8 * 8, model.num_classes)


def test_blocks_with_additions_are_refused() -> None:
    """Their layer-wise blocks would not have them, and the function would change without a word."""

    def source() -> Any:
        return timm.create_model("vit_base_patch16_gap_224", depth=2, embed_dim=24, num_heads=3, img_size=32)

    hooked, adapted, patched = source(), source(), source()
    hooked.blocks[1].register_forward_hook(lambda module, args, output: 2 * output)
    adapted.blocks[1].adapter = nn.Linear(24, 24)
    patched.blocks[1].forward = lambda x: x
    for model in (hooked, adapted, patched):
        with pytest.raises(ValueError, match="block 1 has hooks, parts or a forward of its own"):
            convert(model)
    plain = VisionTransformer(
        img_size=32, depth=2, embed_dim=24, num_heads=3, class_token=False, global_pool="avg",
        norm_layer=partial(nn.LayerNorm, elementwise_affine=False),
    )  # fmt: skip
    with pytest.raises(ValueError, match="block 0 has a norm without weights"):
        convert(plain)


def test_modes_are_kept_part_by_part() -> None:
    source = timm.create_model("vit_base_patch16_gap_224", depth=2, embed_dim=24, num_heads=3, img_size=32).train()
    source.blocks.eval()
    model = convert(source)
    assert model.training
    assert not model.blocks[0].training
    assert not model.blocks[0].attn.training
    assert model.patch_embed.training
