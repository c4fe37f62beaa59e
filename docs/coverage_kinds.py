"""The kinds of timm's architectures, as conversion sees them, and a small model of each."""

from __future__ import annotations

import functools
from typing import Any

import timm
from torch import nn

from mpvg.convert import why_not
from mpvg.models.architectures import timm_architectures

SIDE = 4  # patches of a small model, along a side
PLAIN = {"attention": "Attention", "mlp": "Mlp", "norm": "LayerNorm"}  # what is not worth a word
BACKBONES = {
    "ConvStem": "a convolutional stem",
    "FeatureListNet": "a ResNet",
    "MbConvStages": "MBConv stages",
    "ResNetV2": "a ResNetV2",
    "Sequential": "a ResNetV2's stem",
}


def skeleton(name: str, **changes: Any) -> Any:
    """Return a model on the meta device, of its own width and image size but few blocks."""
    shallow = {"depths": (1, 1, 1, 1)} if name.startswith("swin") else {"depth": 3}
    return timm.create_model(name, device="meta", weight_init="skip", **{**shallow, **changes})


@functools.cache
def skeletons() -> dict[str, Any]:
    """Return the skeleton of every architecture that timm lists; to be left as they are."""
    return {name: skeleton(name) for name in timm_architectures()}


def small(name: str, **changes: Any) -> Any:
    """Return a model with random weights that differs from an architecture in size alone."""
    if name.startswith("swin"):
        sizes = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (2, 2, 4, 4)}
    else:
        embed = skeleton(name).patch_embed
        step = embed.feat_ratio(as_scalar=False)
        rest = [pixels % one for pixels, one in zip(embed.img_size, step, strict=True)]
        sizes = {"img_size": tuple(SIDE * one + left for one, left in zip(step, rest, strict=True)), "depth": 3}
        if not isinstance(getattr(embed, "proj", None), nn.Identity):  # else the patches come as wide as they are
            sizes |= {"embed_dim": 48, "num_heads": 4}
    return timm.create_model(name, **{"num_classes": 7, **sizes, **changes})


def kind_of(model: Any) -> str:
    """Return what a convertible model has beside a plain ViT's parts, its read-out first."""
    if hasattr(model, "layers"):
        return "mean, Swin: windows, no table"
    block, embed = model.blocks[0], model.patch_embed
    step = embed.feat_ratio(as_scalar=False)
    last_norms = [norm for norm in (model.norm, model.fc_norm) if not isinstance(norm, nn.Identity)]
    has_rows = model.pos_embed is not None and model.pos_embed.shape[1] > embed.num_patches
    parts = {"attention": block.attn, "mlp": block.mlp, "norm": block.norm1}
    terms = {
        read_out(model): True,
        "registers pooled too": model.pool_include_prefix,
        "class token unread": model.has_class_token and model.global_pool != "token",
        "norm after pooling": model.fc_norm in last_norms,
        "no Last LN": not last_norms,
        "pre-norm": not isinstance(model.norm_pre, nn.Identity),
        "layer scale": not isinstance(block.ls1, nn.Identity),
        "registers": model.reg_token is not None and not (has_rows and not model.no_embed_class),
        "registers with rows": model.reg_token is not None and has_rows and not model.no_embed_class,
        "no row for the class token": model.has_class_token and model.no_embed_class,
        "no table": model.pos_embed is None,
        **{type(part).__name__: type(part).__name__ != PLAIN[name] for name, part in parts.items()},
        "norm in attention": has_norm(block.attn),
        "norm in MLP": has_norm(block.mlp),
        f"patches from {BACKBONES.get(type(getattr(embed, 'backbone', None)).__name__)}": hasattr(embed, "backbone"),
        "image cut to whole patches": any(size % one for size, one in zip(embed.img_size, step, strict=True)),
    }
    return ", ".join(term for term, holds in terms.items() if holds)


def read_out(model: Any) -> str:
    """Return what a ViT's head reads."""
    return {"token": "class token", "avg": "mean", "map": "attention pooling"}[model.global_pool]


def has_norm(part: nn.Module) -> bool:
    return not isinstance(getattr(part, "norm", nn.Identity()), nn.Identity)


@functools.cache
def kinds() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the architectures of each kind that is converted, and those refused for each reason."""
    converted: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    for name, model in skeletons().items():
        reason = why_not(model)
        group, key = (converted, kind_of(model)) if reason is None else (refused, reason)
        group.setdefault(key, []).append(name)
    return converted, refused
