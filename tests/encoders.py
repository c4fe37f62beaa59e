"""Tiny encoders of transformers with every parameter perturbed, as they are and converted."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import perturb
from mpvg import convert

transformers = pytest.importorskip("transformers")

DEPTH, HEADS, WIDTH, ROWS, LENGTH, PAD = 4, 4, 32, 20, 9, 1
SHAPE: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
    "intermediate_size": 48, "max_position_embeddings": ROWS, "pad_token_id": PAD, "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
DISTIL: dict[str, Any] = {
    "vocab_size": 50, "dim": WIDTH, "n_layers": DEPTH, "n_heads": HEADS, "hidden_dim": 48, "pad_token_id": PAD,
    "max_position_embeddings": ROWS, "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
TWO = ("Bert", "DistilBert")
ALL = (*TWO, "Roberta", "XLMRoberta", "Camembert", "Electra")
VISIBLE = torch.tensor([[1] * LENGTH, [1] * 6 + [0] * 3])
IDS = torch.randint(2, 50, (2, LENGTH), generator=torch.Generator().manual_seed(0)).masked_fill(VISIBLE == 0, PAD)


def build(kind: str, *, head: str = "Model", attention: str = "sdpa", **changes: Any) -> Any:
    """Return a tiny perturbed model in eval mode."""
    shape = DISTIL if kind == "DistilBert" else {**SHAPE, **({"embedding_size": WIDTH} if kind == "Electra" else {})}
    config = getattr(transformers, f"{kind}Config")(**{**shape, **changes}, attn_implementation=attention)
    torch.manual_seed(0)
    return perturb(getattr(transformers, f"{kind}{head}")(config)).eval()


def converted(kind: str, scheme: Any = "mpvg", *, preserve: bool = True, **changes: Any) -> Any:
    """Return a converted model with everything perturbed, what is new included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return perturb(convert(build(kind, **changes), scheme, preserve), seed=1)


def tokens(model: Any, ids: Tensor | None = IDS, visible: Tensor | None = VISIBLE, **kwargs: Any) -> Tensor:
    """Return the last hidden state without gradients."""
    with torch.no_grad():
        return model(ids, attention_mask=visible, **kwargs)[0]
