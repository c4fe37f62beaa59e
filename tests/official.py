"""Weights and images as functions of a name, a shape and a seed, so that they need not be stored."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
TABLES = ("pos", "cls_token", "class_emb", "token", "bias_table", "embed_level", "level_embed")


@dataclass
class Golden:
    """What an official implementation put out."""

    weights: dict[str, Tensor]
    image: Tensor
    logits: Tensor

    @classmethod
    def read(cls, name: str) -> Golden:
        found: dict[str, Any] = json.loads((GOLDEN / f"{name}_1.json").read_text())
        seed = found["seed"]
        weights = {name: by_rule(name, tuple(shape), seed) for name, shape in found["keys"].items()}
        image = np.random.Generator(np.random.PCG64(seed)).standard_normal(found["input"])
        return cls(weights, torch.from_numpy(image), torch.tensor(found["logits"], dtype=torch.float64))


def by_rule(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal numbers drawn from the name, scaled by what the name says the tensor is."""
    values = np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode()))).standard_normal(shape)
    part = name.rsplit(".", 1)[-1]
    if part == "running_var":
        values = 0.5 + np.abs(values)
    elif part == "running_mean":
        values = 0.1 * values
    elif len(shape) >= 2 and not any(table in name for table in TABLES):
        values = values / np.sqrt(np.prod(shape[1:]))
    elif part == "weight" and len(shape) == 1:
        values = 1 + 0.3 * values
    else:
        values = 0.3 * values
    return torch.from_numpy(values)
