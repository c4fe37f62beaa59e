"""Every position scheme written out once more, plainly and in float64, from the papers' formulas alone.

Nothing here comes from `mpvg` or timm: a model is a state dict and a few numbers. `Switches` are the six of the method;
`reverse_chain` and `drop_class_row` are wrong on purpose, to see the comparison fail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass
class Switches:
    class_token: bool
    join_input: bool
    layerwise: bool
    hierarchical: bool
    first_block: bool
    last_norm: int | None
    reverse_chain: bool = False
    drop_class_row: bool = False


def layer_norm(x: Tensor, weights: Weights, name: str, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attention(x: Tensor, weights: Weights, name: str, heads: int) -> Tensor:
    batch, count, width = x.shape
    q, k, v = linear(x, weights, f"{name}.qkv").chunk(3, dim=-1)
    q, k, v = (part.reshape(batch, count, heads, width // heads).permute(0, 2, 1, 3) for part in (q, k, v))
    scores = (q @ k.transpose(2, 3) / math.sqrt(width // heads)).exp()
    mixed = (scores / scores.sum(-1, keepdim=True)) @ v
    return linear(mixed.permute(0, 2, 1, 3).reshape(batch, count, width), weights, f"{name}.proj")


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def mlp(x: Tensor, weights: Weights, name: str) -> Tensor:
    return linear(gelu(linear(x, weights, f"{name}.fc1")), weights, f"{name}.fc2")


def patches(image: Tensor, weights: Weights, patch: int) -> Tensor:
    batch, channels, height, width = image.shape
    pieces = image.reshape(batch, channels, height // patch, patch, width // patch, patch)
    pieces = pieces.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)
    kernel = weights["patch_embed.proj.weight"]
    return pieces @ kernel.reshape(kernel.shape[0], -1).T + weights["patch_embed.proj.bias"]


def delivered(weights: Weights, depth: int, switches: Switches, eps: float = 1e-6) -> dict[int, Tensor]:
    """d_l for every block that receives one."""
    pos0 = weights["pos_embed"]
    out: dict[int, Tensor] = {}
    if not switches.layerwise:
        return out
    receivers = list(range(0 if switches.first_block else 1, depth))
    previous = pos0
    for block in reversed(receivers) if switches.reverse_chain else receivers:
        previous = layer_norm(previous if switches.hierarchical else pos0, weights, f"blocks.{block}.norm_pos", eps)
        out[block] = previous
    return out


def run(
    weights: Weights, image: Tensor, switches: Switches, *, depth: int, heads: int, patch: int, registers: int = 0
) -> dict[str, Tensor]:
    """Return the tokens y after the Last LN and the logits of an image."""
    return encoder(weights, patches(image, weights, patch), switches, depth=depth, heads=heads, registers=registers)


def encoder(
    weights: Weights, tokens: Tensor, switches: Switches, *, depth: int, heads: int, registers: int = 0
) -> dict[str, Tensor]:
    """Return the tokens y after the Last LN and the logits of tokens, of which none is padding."""
    batch, class_rows = len(tokens), int(switches.class_token)

    def to_tokens(rows: Tensor) -> Tensor:  # registers stand between the class token and the patches, without a row
        class_row, patch_rows = rows[:, :class_rows], rows[:, class_rows:]
        if switches.drop_class_row:
            class_row = class_row * 0
        return torch.cat([class_row, rows.new_zeros(1, registers, rows.shape[2]), patch_rows], dim=1)

    prefix = [weights[name].repeat(batch, 1, 1) for name in ("cls_token", "reg_token") if name in weights]
    x = torch.cat([*prefix, tokens], dim=1)
    if switches.join_input:
        x = x + to_tokens(weights["pos_embed"])

    pos = delivered(weights, depth, switches)
    for block in range(depth):
        a = layer_norm(x, weights, f"blocks.{block}.norm1")
        if block in pos:
            a = a + to_tokens(pos[block])
        x = x + attention(a, weights, f"blocks.{block}.attn", heads)
        x = x + mlp(layer_norm(x, weights, f"blocks.{block}.norm2"), weights, f"blocks.{block}.mlp")

    y = layer_norm(x, weights, "norm")
    if switches.last_norm is not None:
        source = weights["pos_embed"] if switches.last_norm == 0 else pos[switches.last_norm]
        y = y + to_tokens(layer_norm(source, weights, "norm_pos"))
    pooled = y[:, 0] if switches.class_token else y[:, registers:].mean(1)
    return {"y": y, "logits": linear(pooled, weights, "head")}
