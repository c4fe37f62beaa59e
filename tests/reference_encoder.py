"""Post-norm encoders under a position scheme, written out plainly in float64: a state dict and a few numbers.

Nothing here comes from `mpvg` or transformers; the names of a state dict are all that BERT and DistilBERT differ in.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from reference import Switches, Weights, gelu, layer_norm, linear

EPS = 1e-12
BERT = {
    "layer": "encoder.layer", "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "out": "attention.output.dense", "norm1": "attention.output.LayerNorm", "up": "intermediate.dense",
    "down": "output.dense", "norm2": "output.LayerNorm",
}  # fmt: skip
DISTILBERT = {
    "layer": "transformer.layer", "q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin",
    "out": "attention.out_lin", "norm1": "sa_layer_norm", "up": "ffn.lin1", "down": "ffn.lin2",
    "norm2": "output_layer_norm",
}  # fmt: skip


def attention(a: Tensor, visible: Tensor, weights: Weights, block: str, names: dict[str, str], heads: int) -> Tensor:
    """Return MSA(a) for tokens (B, N, D), where no token sees those that are not visible (B, N)."""
    batch, count, width = a.shape
    parts = [linear(a, weights, f"{block}.{names[name]}").reshape(batch, count, heads, -1) for name in "qkv"]
    q, k, v = (part.permute(0, 2, 1, 3) for part in parts)
    scores = (q @ k.transpose(2, 3) / math.sqrt(width // heads)).masked_fill(~visible[:, None, None], -math.inf)
    mixed = scores.softmax(-1) @ v
    return linear(mixed.permute(0, 2, 1, 3).reshape(batch, count, width), weights, f"{block}.{names['out']}")


def run(
    state: dict[str, Any], names: dict[str, str], switches: Switches, ids: Tensor, position_ids: Tensor,
    visible: Tensor, *, heads: int, depth: int, eps: float = EPS,
) -> list[Tensor]:  # fmt: skip
    """Return x_0 to x_L, the last with what the Last LN adds, each (B, N, D) in float64."""
    weights: Weights = {key: value.double() for key, value in state.items()}
    pos_0 = weights["embeddings.position_embeddings.weight"][position_ids]
    x = weights["embeddings.word_embeddings.weight"][ids]
    if "embeddings.token_type_embeddings.weight" in weights:
        x = x + weights["embeddings.token_type_embeddings.weight"][0]
    if switches.join_input:
        x = x + pos_0
    x = layer_norm(x, weights, "embeddings.LayerNorm", eps)
    states, delivered, previous = [x], {}, pos_0
    for number in range(depth):
        block, a = f"{names['layer']}.{number}", x
        if switches.layerwise and number >= (0 if switches.first_block else 1):
            source = previous if switches.hierarchical else pos_0
            previous = layer_norm(source, weights, f"{block}.norm_pos", eps)
            delivered[number] = previous
            a = x + weights.get(f"{block}.ls_pos.gamma", torch.ones(())) * previous
        middle = layer_norm(
            x + attention(a, visible, weights, block, names, heads), weights, f"{block}.{names['norm1']}", eps
        )
        widened = gelu(linear(middle, weights, f"{block}.{names['up']}"))
        x = middle + linear(widened, weights, f"{block}.{names['down']}")
        x = layer_norm(x, weights, f"{block}.{names['norm2']}", eps)
        if number == depth - 1 and switches.last_norm is not None:
            source = delivered[switches.last_norm] if switches.last_norm else pos_0
            x = x + layer_norm(source, weights, "norm_pos", eps)
        states.append(x)
    return states
