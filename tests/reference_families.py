"""ViT-Lite, T2T-ViT, CeiT and Swin under every position scheme, written out plainly from their papers' formulas.

The companion of `reference.py`, under its rules: float64, nothing from `mpvg` or timm, a model is a state dict and a
few numbers. Everything runs in eval mode. Tables are returned as they are, before `drop_class_row` spoils their use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from reference import Switches, Weights, delivered, gelu, layer_norm, linear, mlp, patches


class Result(TypedDict):
    y: Tensor  # after the Last LN and its term
    logits: Tensor
    delivered: dict[int, Tensor]  # d_l by block
    last: Tensor | None  # LN'(s), all its rows


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | float = 0.0) -> Tensor:
    """Let the rows of q (B,M,D) read the rows of k and v (B,N,D); bias (heads,M,N) is added to the scaled products."""

    def split(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)

    scores = split(q) @ split(k).transpose(2, 3) / math.sqrt(q.shape[2] // heads) + bias
    scores = (scores - scores.amax(-1, keepdim=True)).exp()
    mixed = (scores / scores.sum(-1, keepdim=True)) @ split(v)
    return mixed.transpose(1, 2).reshape(q.shape)


# Class token, positions, Last LN: what ViT-Lite, T2T-ViT and CeiT share.


def used(table: Tensor, switches: Switches) -> Tensor:
    """The table as it is added to tokens: itself, unless the class token's row is to be lost."""
    if not (switches.class_token and switches.drop_class_row):
        return table
    return torch.cat([table[:, :1] * 0, table[:, 1:]], dim=1)


def enter(tokens: Tensor, weights: Weights, switches: Switches) -> Tensor:
    """x_0"""
    if "cls_token" in weights:
        tokens = torch.cat([weights["cls_token"].repeat(len(tokens), 1, 1), tokens], dim=1)
    return tokens + used(weights["pos_embed"], switches) if switches.join_input else tokens


def last_term(weights: Weights, pos: dict[int, Tensor], switches: Switches, eps: float) -> Tensor | None:
    if switches.last_norm is None:
        return None
    source = weights["pos_embed"] if switches.last_norm == 0 else pos[switches.last_norm]
    return layer_norm(source, weights, "norm_pos", eps)


Block = Callable[[Tensor, str, Tensor | float], Tensor]  # (x_l, the block's name, d_l or 0) -> x_{l+1}


def through(tokens: Tensor, weights: Weights, switches: Switches, depth: int, eps: float, block: Block) -> Result:
    pos = delivered(weights, depth, switches, eps)
    x = enter(tokens, weights, switches)
    for i in range(depth):
        x = block(x, f"blocks.{i}", used(pos[i], switches) if i in pos else 0.0)
    y = layer_norm(x, weights, "norm", eps)
    last = last_term(weights, pos, switches, eps)
    if last is not None:
        y = y + used(last, switches)
    pooled = y[:, 0] if switches.class_token else y.mean(1)
    return {"y": y, "logits": linear(pooled, weights, "head"), "delivered": pos, "last": last}


def attention_without_bias(x: Tensor, weights: Weights, name: str, heads: int) -> Tensor:
    q, k, v = (x @ weights[f"{name}.qkv.weight"].T).chunk(3, dim=-1)
    return linear(attend(q, k, v, heads), weights, f"{name}.proj")


def vit_lite(weights: Weights, image: Tensor, switches: Switches, *, depth: int, heads: int) -> Result:
    eps = 1e-5

    def block(x: Tensor, name: str, d: Tensor | float) -> Tensor:
        a = layer_norm(x, weights, f"{name}.norm1", eps) + d
        x = x + attention_without_bias(a, weights, f"{name}.attn", heads)
        x = layer_norm(x, weights, f"{name}.norm2", eps)  # replaces the stream
        return x + mlp(x, weights, f"{name}.mlp")

    patch = weights["patch_embed.proj.weight"].shape[-1]
    return through(patches(image, weights, patch), weights, switches, depth, eps, block)


# T2T-ViT


def soft_split(x: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """(B,C,H,W) to overlapping neighbourhoods (B,N,C*size*size)."""
    return F.unfold(x, kernel_size=size, stride=stride, padding=padding).transpose(1, 2)


def performer(x: Tensor, weights: Weights, name: str) -> Tensor:
    w = weights[f"{name}.w"]

    def phi(z: Tensor) -> Tensor:
        return (z @ w.T - z.square().sum(-1, keepdim=True) / 2).exp() / math.sqrt(len(w))

    k, q, v = linear(layer_norm(x, weights, f"{name}.norm1", 1e-5), weights, f"{name}.kqv").chunk(3, dim=-1)
    q, k = phi(q), phi(k)
    y = q @ (k.transpose(1, 2) @ v) / ((q * k.sum(1, keepdim=True)).sum(-1, keepdim=True) + 1e-8)
    y = v + linear(y, weights, f"{name}.proj")
    hidden = gelu(linear(layer_norm(y, weights, f"{name}.norm2", 1e-5), weights, f"{name}.mlp.0"))
    return y + linear(hidden, weights, f"{name}.mlp.2")


def tokens_to_token(image: Tensor, weights: Weights, name: str) -> Tensor:
    height, width = image.shape[2] // 4, image.shape[3] // 4
    x = performer(soft_split(image, 7, 4, 2), weights, f"{name}.attention1")
    x = x.transpose(1, 2).unflatten(2, (height, width))
    x = performer(soft_split(x, 3, 2, 1), weights, f"{name}.attention2")
    x = x.transpose(1, 2).unflatten(2, (height // 2, width // 2))
    return linear(soft_split(x, 3, 2, 1), weights, f"{name}.project")


def t2t_vit(weights: Weights, image: Tensor, switches: Switches, *, depth: int, heads: int) -> Result:
    eps = 1e-5

    def block(x: Tensor, name: str, d: Tensor | float) -> Tensor:
        a = layer_norm(x, weights, f"{name}.norm1", eps) + d
        x = x + attention_without_bias(a, weights, f"{name}.attn", heads)
        return x + mlp(layer_norm(x, weights, f"{name}.norm2", eps), weights, f"{name}.mlp")

    return through(tokens_to_token(image, weights, "patch_embed.proj"), weights, switches, depth, eps, block)


# CeiT


def batch_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Over the channels of (B,C,H,W), with the stored statistics."""
    mean, variance, gamma, beta = (
        weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * gamma + beta


def image_to_tokens(image: Tensor, weights: Weights, name: str) -> Tensor:
    """Tokens as a map (B,D,H/16,W/16)."""
    x = F.conv2d(image, weights[f"{name}.conv.weight"], stride=2, padding=3)
    x = F.max_pool2d(batch_norm(x, weights, f"{name}.bn"), 3, stride=2, padding=1)
    kernel = weights[f"{name}.proj.weight"]
    return F.conv2d(x, kernel, weights[f"{name}.proj.bias"], stride=kernel.shape[-1])


def leff(x: Tensor, weights: Weights, name: str, class_rows: int, grid: tuple[int, int]) -> Tensor:
    """The feed-forward branch over neighbours; a class token passes unchanged."""
    x_class, x_patches = x[:, :class_rows], x[:, class_rows:]

    def conv(m: Tensor, number: int, padding: int = 0, groups: int = 1) -> Tensor:
        part = f"{name}.conv{number}"
        m = F.conv2d(m, weights[f"{part}.weight"], weights[f"{part}.bias"], padding=padding, groups=groups)
        return batch_norm(m, weights, f"{name}.bn{number}")

    m = gelu(conv(x_patches.transpose(1, 2).unflatten(2, grid), 1))
    m = conv(gelu(conv(m, 2, padding=1, groups=m.shape[1])), 3)
    return torch.cat([x_class, m.flatten(2).transpose(1, 2)], dim=1)


def ceit(weights: Weights, image: Tensor, switches: Switches, *, depth: int, heads: int) -> Result:
    """Decision 2: without a class token LCA reads each block's mean token; its own table is one more position.

    `delivered[depth]` is LCA's; y is (B,1,D), with the last term reduced to that one row.
    """
    token_map = image_to_tokens(image, weights, "patch_embed.proj")
    grid = (token_map.shape[2], token_map.shape[3])
    pos = delivered(weights, depth, switches)
    x = enter(token_map.flatten(2).transpose(1, 2), weights, switches)
    collected = []
    for i in range(depth):
        name = f"blocks.{i}"
        a = layer_norm(x, weights, f"{name}.norm1")
        if i in pos:
            a = a + used(pos[i], switches)
        q, k, v = linear(a, weights, f"{name}.attn.qkv").chunk(3, dim=-1)
        x = x + linear(attend(q, k, v, heads), weights, f"{name}.attn.proj")
        x = x + leff(layer_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp", int(switches.class_token), grid)
        collected.append(x[:, 0] if switches.class_token else x.mean(1))

    layers = torch.stack(collected, dim=1)
    if switches.join_input:
        layers = layers + weights["lca.pos_embed"]
    a = layer_norm(layers, weights, "lca.norm1")
    last = last_term(weights, pos, switches, 1e-6)
    if switches.layerwise:
        pos[depth] = layer_norm(weights["lca.pos_embed"], weights, "lca.norm_pos")
        a = a + pos[depth]
    q, k, v = linear(a, weights, "lca.attn.qkv").chunk(3, dim=-1)
    out = layers[:, -1:] + linear(attend(q[:, -1:], k, v, heads), weights, "lca.attn.proj")
    out = out + mlp(layer_norm(out, weights, "lca.norm2"), weights, "lca.mlp")

    y = layer_norm(out, weights, "norm")
    if last is not None:
        rows = used(last, switches)
        y = y + (rows[:, :1] if switches.class_token else rows.mean(1, keepdim=True))
    return {"y": y, "logits": linear(y[:, 0], weights, "head"), "delivered": pos, "last": last}


# Swin: maps (B,H,W,C) all the way.


def merge(x: Tensor, weights: Weights, stage: int) -> Tensor:
    """The step into a stage, for tokens and for positions."""
    phases = [x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    name = f"layers.{stage}.downsample"
    return layer_norm(torch.cat(phases, dim=-1), weights, f"{name}.norm", 1e-5) @ weights[f"{name}.reduction.weight"].T


def window_bias(table: Tensor, height: int, width: int) -> Tensor:
    """(heads,M,M): for each query and key of a window, the table's row of their distance."""
    y, x = (c.flatten() for c in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return table[(dy + height - 1) * (2 * width - 1) + dx + width - 1].permute(2, 0, 1)


def window_attention(a: Tensor, weights: Weights, name: str, heads: int, window: int, odd: bool) -> Tensor:
    """Attention in windows, in odd blocks shifted by half a window; a side that one window covers is not shifted."""
    batch, height, width, channels = a.shape
    window_y, window_x = min(window, height), min(window, width)
    assert height % window_y == 0, "padded windows are not written out here"
    assert width % window_x == 0, "padded windows are not written out here"
    shift_y = window // 2 if odd and height > window else 0
    shift_x = window // 2 if odd and width > window else 0
    bias = window_bias(weights[f"{name}.relative_position_bias_table"], window_y, window_x)

    a = a.roll((-shift_y, -shift_x), dims=(1, 2))
    wrapped_y = torch.arange(height) >= height - shift_y  # rows that came round from the other side
    wrapped_x = torch.arange(width) >= width - shift_x
    region = 2 * wrapped_y[:, None].long() + wrapped_x[None, :].long()
    bands = []
    for top in range(0, height, window_y):
        band = []
        for left in range(0, width, window_x):
            rows, columns = slice(top, top + window_y), slice(left, left + window_x)
            labels = region[rows, columns].flatten()
            apart = -100.0 * (labels[:, None] != labels[None, :]).to(a.dtype)
            tokens = a[:, rows, columns].reshape(batch, -1, channels)
            q, k, v = linear(tokens, weights, f"{name}.qkv").chunk(3, dim=-1)
            band.append(attend(q, k, v, heads, bias + apart).unflatten(1, (window_y, window_x)))
        bands.append(torch.cat(band, dim=2))
    mixed = torch.cat(bands, dim=1).roll((shift_y, shift_x), dims=(1, 2))
    return linear(mixed, weights, f"{name}.proj")


def swin_positions(
    weights: Weights, switches: Switches, depths: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor | None]:
    """d_l of every block that receives one, and LN'(s). Between stages every map goes through the tokens' merging.

    pos0, chain and source are the three maps on their way: the initial table, d_{l-1}, and what the Last LN will get.
    """
    pos: dict[int, Tensor] = {}
    pos0 = chain = source = weights["pos_embed"]
    block = 0
    for stage, depth in enumerate(depths):
        if stage > 0:
            pos0, chain, source = (merge(x, weights, stage) for x in (pos0, chain, source))
        for i in range(depth):
            if switches.layerwise and (block > 0 or switches.first_block):
                name = f"layers.{stage}.blocks.{i}.norm_pos"
                pos[block] = chain = layer_norm(chain if switches.hierarchical else pos0, weights, name, 1e-5)
                if switches.last_norm == block and block > 0:  # 0 means the initial table
                    source = pos[block]
            block += 1
    assert not switches.last_norm or switches.last_norm in pos
    last = None if switches.last_norm is None else layer_norm(source, weights, "norm_pos", 1e-5)
    return pos, last


def swin(
    weights: Weights, image: Tensor, switches: Switches, *, depths: Sequence[int], heads: Sequence[int], window: int
) -> Result:
    """Decision 1. Blocks are numbered through all stages; `heads` is one number a stage."""
    assert not switches.class_token
    assert not switches.reverse_chain
    eps = 1e-5
    patch = weights["patch_embed.proj.weight"].shape[-1]
    grid = (image.shape[2] // patch, image.shape[3] // patch)
    x = layer_norm(patches(image, weights, patch), weights, "patch_embed.norm", eps).unflatten(1, grid)
    if switches.join_input:
        x = x + weights["pos_embed"]
    pos, last = swin_positions(weights, switches, depths)
    block = 0
    for stage, depth in enumerate(depths):
        if stage > 0:
            x = merge(x, weights, stage)
        for i in range(depth):
            name = f"layers.{stage}.blocks.{i}"
            a = layer_norm(x, weights, f"{name}.norm1", eps)
            if block in pos:
                a = a + pos[block]
            x = x + window_attention(a, weights, f"{name}.attn", heads[stage], window, odd=i % 2 == 1)
            x = x + mlp(layer_norm(x, weights, f"{name}.norm2", eps), weights, f"{name}.mlp")
            block += 1
    y = layer_norm(x, weights, "norm", eps)
    if last is not None:
        y = y + last
    return {"y": y, "logits": linear(y.mean((1, 2)), weights, "head.fc"), "delivered": pos, "last": last}
