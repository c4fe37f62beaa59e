"""The architectures of timm that are made of its VisionTransformer or its SwinTransformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm

MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "vitamin", "swin_transformer")  # timm's files


def timm_architectures() -> list[str]:
    """Return the names of the architectures in the files of timm that build a VisionTransformer or SwinTransformer."""
    return sorted({name for module in MODULES for name in timm.list_models(module=module)})


def own_classifiers() -> list[str]:
    """Return the names of this library's models that classify images."""
    others = ("mpvg_vit_adapter_", "mpvg_sequence")
    return [name for name in timm.list_models("mpvg_*") if not name.startswith(others)]


def all_architectures() -> list[str]:
    """Return the names of timm's architectures that can be converted, and of ours that have a classifier."""
    return [*timm_architectures(), *own_classifiers()]


def nearest_architecture(weights: Mapping[str, Any]) -> tuple[str | None, int]:
    """Return the architecture that a state dict fits best, timm's or ours, and how many of its tensors fit.

    Of several that fit alike, it is the one with the fewest tensors of its own, and then the shortest name.

    Args:
        weights: By timm's names.

    Returns:
        The name and the number of tensors of the same name and shape; None and 0 where fewer than half of them fit.
    """
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in weights.items()}

    def fit(name: str, **shallow: Any) -> tuple[int, int, int]:
        own = timm.create_model(name, device="meta", **shallow).state_dict()
        fitting = sum(key in own and tuple(own[key].shape) == shape for key, shape in shapes.items())
        return fitting, -len(own), -len(name)

    # to build all of them takes half a minute, with one block each a tenth of it
    shallow = {name: fit(name, **_one_block(name))[0] for name in all_architectures()}
    best = max(shallow.values())
    if not best:
        return None, 0
    found = {name: fit(name) for name, fitting in shallow.items() if fitting == best}
    name = max(found, key=lambda name: found[name])
    return (name, found[name][0]) if 2 * found[name][0] > len(shapes) else (None, 0)


def _one_block(name: str) -> dict[str, Any]:
    if "swin" in name:
        return {"depths": (1, 1, 1, 1)}
    return {"depth": 1, "scheme": "gap"} if name.startswith("mpvg_") else {"depth": 1}
