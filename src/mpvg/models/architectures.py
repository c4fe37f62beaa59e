"""The architectures of timm that are made of its VisionTransformer or its SwinTransformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm

MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "vitamin", "swin_transformer")  # timm's files


def timm_architectures() -> list[str]:
    """Return the names of the architectures in the files of timm that build a VisionTransformer or SwinTransformer."""
    return sorted({name for module in MODULES for name in timm.list_models(module=module)})


def nearest_architecture(weights: Mapping[str, Any]) -> tuple[str | None, int]:
    """Return the architecture that a state dict fits best, timm's or ours, and how many of its tensors fit.

    Args:
        weights: By timm's names.

    Returns:
        The name and the number of tensors of the same name and shape; None and 0 where fewer than half of them fit.
    """
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in weights.items()}
    layerwise = any("norm_pos." in name for name in shapes)
    best: tuple[str | None, int, int] = (None, 0, 0)
    for name in timm.list_models("mpvg_*") if layerwise else timm_architectures():
        own = {key: tuple(value.shape) for key, value in timm.create_model(name, device="meta").state_dict().items()}
        fitting = sum(own.get(key) == shape for key, shape in shapes.items())
        if (fitting, -len(own)) > best[1:]:
            best = (name, fitting, -len(own))
    return (best[0], best[1]) if 2 * best[1] > len(shapes) else (None, 0)
