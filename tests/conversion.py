"""Sources of conversion as the tests see them: one small timm model of each kind, and its formula written out.

The formula is computed in the source's own modules, with nothing of `mpvg` but the parameters that conversion adds.
`wrong` names one thing to get wrong on purpose, to see the comparison fail.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coverage_kinds import small
from helpers import images, perturb
from mpvg import convert

FEW: Mapping[str, Any] = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 4}
KINDS = (  # the first of each kind in docs/coverage.md, or the smallest
    "aimv2_large_patch14_224",
    "beit3_base_patch16_224",
    "deit3_small_patch16_224",
    "eva_large_patch14_196",
    "flexivit_small",
    "swin_tiny_patch4_window7_224",
    "test_vit",
    "test_vit2",
    "test_vit3",
    "test_vit4",
    "vit_base_mci_224",
    "vit_base_patch14_dinov2",
    "vit_base_patch14_reg4_dinov2",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_gap_224",
    "vit_base_patch16_radio_v3",
    "vit_base_patch16_reg4_gap_256",
    "vit_base_patch16_siglip_224",
    "vit_dwee_patch16_reg1_gap_256",
    "vit_giant_patch14_dinov2",
    "vit_giant_patch14_reg4_dinov2",
    "vit_huge_patch16_radio_v4",
    "vit_intern300m_patch14_448",
    "vit_medium_patch16_gap_256",
    "vit_medium_patch16_reg4_gap_256",
    "vit_small_r26_s32_224",
    "vit_small_resnet26d_224",
    "vit_so150m_patch16_reg4_gap_256",
    "vit_so150m_patch16_reg4_map_256",
    "vit_so400m_patch14_siglip_384",
    "vit_so400m_patch14_siglip_gap_384",
    "vit_tiny_r_s16_p8_224",
    "vitamin_small_224",
    "vitamin_xlarge_256",
)
LARGE = ("vit_base_mci_224", "vit_small_r26_s32_224", "vit_small_resnet26d_224", "vitamin_small_224")  # in every size
OPTIONS: Mapping[str, Mapping[str, Any]] = {  # of timm's class, in none of its names
    "qk_norm": {"qk_norm": True},
    "no table, class token": {"pos_embed": "none"},
    "everything": {
        "class_token": False, "global_pool": "avg", "reg_tokens": 2, "no_embed_class": False, "pre_norm": True,
        "qk_norm": True, "init_values": 0.1, "scale_attn_norm": True, "scale_mlp_norm": True, "norm_layer": "rmsnorm",
    },
}  # fmt: skip


def known(names: tuple[str, ...] = KINDS) -> list[str]:
    """Return the names that this timm knows; the newest have come since the oldest that is supported."""
    return [name for name in names if timm.is_model(name)] + [name for name in OPTIONS if names is KINDS]


def every_kind() -> list[Any]:
    """Return the cases of a test over all kinds."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in known()]


def build(name: str, **changes: Any) -> Any:
    """Return a small source with every parameter perturbed, in eval mode.

    But for convolutional stems, whose patches would become so large that nothing else would show.
    """
    torch.manual_seed(0)
    if name in OPTIONS:
        model = timm.create_model("vit_tiny_patch16_224", **{**FEW, "num_classes": 7, **OPTIONS[name], **changes})
    elif name == "vitamin_xlarge_256":  # whose convolutions are large at every image size
        model = small("vitamin_small_224", pos_embed="none", **changes)
    else:
        model = small(name, **changes)
    stem = getattr(model.patch_embed, "backbone", nn.Identity())
    weights = copy.deepcopy(stem.state_dict())
    perturb(model)
    stem.load_state_dict(weights)
    return model.eval()


def inputs(model: Any, *, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return images(batch, model.in_chans, *model.patch_embed.img_size, dtype=dtype)


def converted(model: Any, scheme: Any, **options: Any) -> Any:
    """Convert without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return convert(model, scheme, allow_readout_change=True, **options)


def like(norm: Any, position: Tensor, trained: Any) -> Tensor:
    """LN'(position): the source's norm with the parameters that were trained for positions."""
    if getattr(norm, "bias", None) is None:
        scale = (position.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
        return position * scale * trained.weight
    return F.layer_norm(position, position.shape[-1:], trained.weight, trained.bias, norm.eps)


def is_none(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)


def mpvg_logits(source: Any, ours: Any, x: Tensor, *, wrong: str = "") -> Tensor:
    """The logits of a timm ViT under mpvg; one that reads a class token gives it up for the mean over patches."""
    patches = source.patch_embed(x)
    patches = patches.flatten(1, 2) if patches.ndim == 4 else patches  # a map where sizes are dynamic
    table = ours.pos_embed if source.pos_embed is None else source.pos_embed
    keeps_token = source.has_class_token and source.global_pool != "token"
    rows = table[:, table.shape[1] - patches.shape[1] :]
    none = table.new_zeros(1, source.num_reg_tokens, table.shape[2])
    class_row, register_rows = none[:, :0], none
    if source.pos_embed is not None and not source.no_embed_class:
        first = int(source.has_class_token)
        register_rows = table[:, first : first + source.num_reg_tokens]
        class_row = table[:, :first] if keeps_token else class_row
    elif source.pos_embed is None and keeps_token:
        class_row = table[:, :1]
    if wrong == "register rows forgotten":
        register_rows = none
    if wrong == "class row forgotten":
        class_row = class_row * 0
    if wrong == "another row dropped":
        rows = table[:, : patches.shape[1]]

    def spread(position: Tensor, *, registers: Tensor = none) -> Tensor:
        count = class_row.shape[1]
        by_token = [position[:, :count], registers, position[:, count:]]
        if keeps_token and count == 0:
            by_token.insert(0, position[:, :1] * 0)
        return torch.cat(by_token[::-1] if wrong == "registers last" else by_token, dim=1)

    position = initial = torch.cat([class_row, rows], dim=1)
    tokens = [source.cls_token] if keeps_token else []
    tokens += [] if source.reg_token is None else [source.reg_token]
    x = torch.cat([*(token.expand(len(patches), -1, -1) for token in tokens), patches], dim=1)
    joined = spread(initial, registers=register_rows)
    if wrong == "not joined":
        joined = joined * 0
    x = source.norm_pre(x) + joined if wrong == "joined after pre-norm" else source.norm_pre(x + joined)

    for i, (block, other) in enumerate(zip(source.blocks, ours.blocks, strict=True)):
        a = block.norm1(x)
        if i > 0:
            position = like(block.norm1, initial if wrong == "flat" else position, other.norm_pos)
            a = block.norm1(x + spread(position)) if wrong == "before the norm" else a + spread(position)
        attended = block.attn(a)
        x = x + (attended if wrong == "no layer scale" else block.ls1(attended))
        x = x + block.ls2(block.mlp(block.norm2(x)))

    prefix = x.shape[1] - patches.shape[1]
    first = 0 if source.pool_include_prefix else prefix
    last_norm = next((norm for norm in (source.norm, source.fc_norm) if not is_none(norm)), source.blocks[-1].norm1)
    last = spread(like(last_norm, initial, ours.norm_pos)) * (wrong != "no last term")

    def pool(tokens: Tensor) -> Tensor:
        tokens = tokens[:, first:]
        return tokens.mean(1) if source.attn_pool is None else source.attn_pool(tokens)

    y = source.norm(x)
    if wrong == "term on the other side of pooling":
        after = not is_none(source.fc_norm)
        return source.head(source.fc_norm(pool(y + last)) if after else pool(y) + last[:, first:].mean(1))
    if is_none(source.fc_norm):
        return source.head(pool(y + last))
    return source.head(source.fc_norm(pool(y)) + last[:, first:].mean(1))
