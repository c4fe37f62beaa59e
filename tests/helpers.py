"""Small models with every parameter perturbed: at initialisation a LayerNorm hides errors."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor

import mpvg  # registers the models

assert mpvg
SMALL: dict[str, Any] = {
    "img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 7, "in_chans": 2,
}  # fmt: skip


def perturb(model: Any, *, std: float = 0.3, seed: int = 0) -> Any:
    """Add N(0, std) noise to every parameter, frozen ones too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(std * noise.to(parameter))
    return model


def small(scheme: Any, name: str = "mpvg_deit_tiny_patch16_224", **changes: Any) -> Any:
    """Return a shrunken, perturbed model in eval mode."""
    torch.manual_seed(0)
    return perturb(timm.create_model(name, scheme=scheme, **{**SMALL, **changes})).eval()


def images(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative(actual: Tensor, expected: Tensor) -> float:
    """max|difference| / max|expected|."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def timm_records_arguments() -> bool:
    """Whether this timm notes create_model's arguments when it saves a model (1.0.26 leaves that to its user)."""
    return hasattr(timm.models, "get_model_args")
