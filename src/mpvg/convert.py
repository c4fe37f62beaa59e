"""A timm model turned into a layer-wise one: `mpvg.convert(model, scheme)`.

Preserving, every new part starts so that it adds nothing, and yet learns. A block's position stands behind a gate,

    a_l = LN_l(x_l) + g_l * d_l        g_l = 0 at the start, a vector; LN' at one

so that the chain of LN' carries a signal from the first step on. At the Last LN, where it ends, LN' starts at zero.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mpvg.convert_encoder import concerns, convert_encoder
from mpvg.fold import Folded
from mpvg.models.arguments import arguments_of
from mpvg.models.mpvg_swin import LayerwiseSwin
from mpvg.models.mpvg_vit import LayerwiseVisionTransformer
from mpvg.position import Layerwise
from mpvg.published import ENTRY
from mpvg.scheme import PositionScheme, SchemeLike

_PARTS_OF_A_BLOCK = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
_CLASSES: Mapping[type, Any] = {VisionTransformer: LayerwiseVisionTransformer, SwinTransformer: LayerwiseSwin}


def convert(
    model: nn.Module, scheme: SchemeLike = "mpvg", preserve: bool = True, allow_readout_change: bool = False
) -> Any:
    """Turn a timm model, or an encoder of transformers, into a layer-wise one.

    Args:
        model: A VisionTransformer or SwinTransformer of timm, or one of this library's that delivers no position yet
            ("default", "gap"). It is left as it is. Or a BERT-like encoder of transformers; then see
            `mpvg.convert_encoder.convert_encoder`.
        scheme: Preset name, text, mapping or PositionScheme.
        preserve: Start from the function that the model computes: gates, one a block (`blocks.<i>.ls_pos.gamma`), let
            nothing of the positions pass at first. False starts the position norms at one, as in training from
            scratch.
        allow_readout_change: Accept a scheme that reads out what the model does not: the mean over tokens for a class
            token, or a new class token.

    Returns:
        A new model with the weights, modes, device and frozen parameters of `model`; what is new is to be trained.
        Its state dict has timm's names, `norm_pos`, and the gates. What could not be kept is told by a UserWarning.

    Raises:
        ValueError: The model's blocks are of another shape, or the scheme changes the read-out unasked.

    Source:
        Not in the papers. Where the model has no table (timm's Swin), it starts at zero if it joins the input.
    """
    if concerns(model):
        return convert_encoder(model, scheme, preserve=preserve)
    reason = why_not(model)
    if reason:
        raise ValueError(reason)
    converted: Any = copy.deepcopy(model)
    converted.__class__ = _CLASSES.get(type(model), type(model))
    is_swin = isinstance(converted, LayerwiseSwin)
    wanted = PositionScheme.parse(scheme, class_tokens=not is_swin)
    if is_swin:
        converted.dynamic_img_size = not converted.patch_embed.strict_img_size
        lost = []
    else:
        lost = _change_read_out(converted, wanted, allowed=allow_readout_change)
    pos_embed = _settle_table(converted, wanted, lost, preserve=preserve)
    converted.make_layerwise(wanted, pos_embed, gated=preserve)
    if preserve and converted.norm_pos is not None:
        for parameter in converted.norm_pos.parameters():
            nn.init.zeros_(parameter)
    converted.train(model.training)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in converted.named_modules():
        module.training = modes.get(name, module.training)
    _record(model, converted, preserve=preserve)
    if lost:
        warnings.warn(f"converted to scheme {str(wanted)!r}: {'; '.join(lost)}.", stacklevel=2)
    return converted


def why_not(model: Any) -> str | None:
    """Return why `convert` refuses a model, or None where it does not."""
    name = type(model).__name__
    if isinstance(model, Folded):
        return f"{name} is folded, its position norms are gone: convert the model that it was folded from."
    if isinstance(model, Layerwise):
        given: Any = model
        if any(given.plan.blocks) or given.plan.last is not None:
            return (
                f"this {name} delivers positions already, by scheme {str(given.scheme)!r}: create the model under the "
                "scheme that is wanted, or convert one of scheme 'default' or 'gap'."
            )
        return None
    if type(model) not in _CLASSES:
        return f"{name} is not converted: " + (
            "it computes something else than timm's class that it derives from, such as a second head."
            if isinstance(model, tuple(_CLASSES))
            else "only timm's VisionTransformer and SwinTransformer are, as instances that timm.create_model returns."
        )
    is_swin = isinstance(model, SwinTransformer)
    blocks: Any = [block for stage in model.layers for block in stage.blocks] if is_swin else list(model.blocks)
    plain = SwinTransformerBlock if is_swin else TimmBlock
    others = {type(block).__name__ for block in blocks if type(block).forward is not plain.forward}
    if others:
        return (
            f"blocks of {', '.join(sorted(others))} are not converted: positions join the input of the attention after "
            "its norm, as in timm's Block, and there is no such place in these."
        )
    for i, block in enumerate(blocks):
        if getattr(block.norm1, "weight", None) is None:
            return f"block {i} has a norm without weights, and LN' is made like it: use norms that learn (affine)."
        added = [*set(block._modules) - _PARTS_OF_A_BLOCK, *block._forward_hooks, *block._forward_pre_hooks]
        if "forward" in vars(block) or (added and not is_swin):
            return (
                f"block {i} has hooks, parts or a forward of its own, which its layer-wise block would not have: take "
                "them away, convert, and put them on again."
            )
    return None


def _change_read_out(model: Any, scheme: PositionScheme, *, allowed: bool) -> list[str]:
    """Give a ViT, timm's or ours, the class token that the scheme reads out, or take it away; tell what is lost.

    A class token beside another read-out (BEiT-3's, which is averaged over patches) is one token more, and stays.
    """
    reads_token = model.has_class_token and model.global_pool in ("token", "")
    if scheme.class_token == reads_token:
        return []
    table, has_row = model.pos_embed, not model.no_embed_class
    if not scheme.class_token:
        if not allowed:
            raise ValueError(
                f"scheme {str(scheme)!r} reads out the mean over tokens, and this model's head reads its class token: "
                "use a scheme with class token ('default', 'lape', 'pvg_cls'), or allow_readout_change=True to drop "
                "the token."
            )
        model.cls_token, model.has_class_token = None, False
        model.num_prefix_tokens -= 1
        if table is not None and has_row:
            model.pos_embed = nn.Parameter(table.detach()[:, 1:].clone(), requires_grad=table.requires_grad)
        if model.global_pool == "token":
            model.global_pool = "avg"
        row = " and its row of the position table are dropped" if table is not None and has_row else " is dropped"
        return [f"the class token{row}; the head reads the mean over the patch tokens, which it was not trained on"]
    if not allowed:
        raise ValueError(
            f"scheme {str(scheme)!r} reads out a class token, and this model pools its tokens "
            f"({model.global_pool or 'not at all'}): use a scheme without class token ('gap', 'lape_gap', 'pvg', "
            "'mpvg'), or allow_readout_change=True to read one out."
        )
    told = []
    if not model.has_class_token:
        like = model.blocks[0].norm1.weight
        model.cls_token = nn.Parameter(trunc_normal_(like.new_zeros(1, 1, model.embed_dim), std=0.02))
        model.has_class_token = True
        model.num_prefix_tokens += 1
        if table is not None and has_row:
            row = trunc_normal_(torch.zeros_like(table[:, :1]), std=0.02)
            rows = torch.cat([row, table.detach()], dim=1)
            model.pos_embed = nn.Parameter(rows, requires_grad=table.requires_grad)
        told = ["the class token is new and untrained"]
    if model.attn_pool is not None:
        told.append("the pooling by attention is dropped")
    pooled, model.attn_pool = model.global_pool or "no", None
    model.global_pool, model.pool_include_prefix = "token", False
    return [*told, f"the head reads the class token, and was trained on {pooled} pooling"]


def _settle_table(model: Any, scheme: PositionScheme, lost: list[str], *, preserve: bool) -> str:
    """Make or drop the position table as the scheme needs it, and return its kind; what is lost joins `lost`."""
    depth = sum(len(stage.blocks) for stage in model.layers) if hasattr(model, "layers") else len(model.blocks)
    plan = scheme.plan(depth, first_block=hasattr(model, "layers"))
    table = getattr(model, "pos_embed", None)
    if not plan.uses_positions:
        model.pos_embed = None
        lost += [] if table is None else ["the position table is dropped, which changes what the model computes"]
        return "none"
    if table is None:
        model.pos_embed = model.empty_table()
        if not (preserve and plan.join_input):  # joined, only zeros leave the function as it is
            trunc_normal_(model.pos_embed, std=0.02)
        return "learn"
    if not plan.join_input:
        lost.append("the position table no longer joins the input, which changes what the model computes")
    return getattr(model, "pos_kind", "learn")


def _record(source: Any, converted: Any, *, preserve: bool) -> None:
    """Note how to build the same model again: {base, scheme}, as arguments of the registered model "mpvg"."""
    cfg = dict(getattr(source, "pretrained_cfg", None) or {})
    known = dict(getattr(source, "_model_args", {}))
    if cfg.get("architecture") != ENTRY:
        told = {name: value for name, value in arguments_of(source).items() if name != "scheme"}
        known = {"base": _full_name(cfg), "base_args": told}
    converted.pretrained_cfg = converted.default_cfg = {**cfg, "architecture": ENTRY}
    converted._model_args = {**{name: known[name] for name in ("base", "base_args")}, "preserve": preserve}


def _full_name(cfg: Mapping[str, Any]) -> str | None:
    """Return timm's name of an architecture, with the tag of its weights."""
    name, tag = cfg.get("architecture"), cfg.get("tag")
    return f"{name}.{tag}" if name and tag else name
