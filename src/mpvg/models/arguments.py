"""What a model was told when it was made, and what was changed since: all that it takes to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

TIMM_NOTES = hasattr(timm.models, "get_model_args")  # timm 1.0.26 leaves it to its user
_OF_THE_CALL = (
    "cache_dir", "device", "dtype", "feature_cls", "features_only", "out_indices", "pretrained_cfg",
    "pretrained_cfg_overlay", "pretrained_model_args",
)  # fmt: skip


def note_arguments(model: Any, arguments: Mapping[str, Any]) -> None:
    """Note on a model what it was told, or what was changed of it, where timm does not.

    Args:
        model: A model of this library; feature extractors are left as they are.
        arguments: Of `timm.create_model`.
    """
    if not TIMM_NOTES and hasattr(model, "scheme"):
        told = {name: value for name, value in arguments.items() if name not in _OF_THE_CALL and value is not None}
        model._model_args = {**getattr(model, "_model_args", {}), **told}


def arguments_of(model: Any) -> dict[str, Any]:
    """Return what `timm.create_model` was told of a model, and what was changed since.

    Args:
        model: A model of timm or of this library. What timm 1.0.26 was told of its own models it does not tell.
    """
    recorded = dict(timm.models.get_model_args(model) if TIMM_NOTES else getattr(model, "_model_args", {}))
    now = {"num_classes": model.num_classes, "in_chans": model.in_chans, "img_size": model.patch_embed.img_size}
    if not TIMM_NOTES:
        pool = getattr(model.head, "global_pool", None)  # Swin's head knows, and its model may not
        now["global_pool"] = getattr(pool, "pool_type", model.global_pool)
        if hasattr(model, "fc_norm"):
            now["fc_norm"] = not isinstance(model.fc_norm, nn.Identity)
    return {**recorded, **now}
