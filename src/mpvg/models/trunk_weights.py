"""Weights of a classification model as a start for the trunk of a ViT-Adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mpvg.models.weights import load_weights
from mpvg.weight_files import read_origin, read_weights

_OF_LAST_NORM = ("norm.", "norm_pos.", "fc_norm.")


def read_trunk(source: str | Path) -> dict[str, Tensor]:
    """Return the weights to start a trunk from.

    Args:
        source: A file or folder as for `mpvg.create_model`, such as a checkpoint of `mpvg fit`, or timm's name of
            weights that it fetches ("deit_tiny_patch16_224.fb_in1k").

    Raises:
        UserError: They cannot be read.
    """
    if not Path(source).expanduser().exists() and timm.is_model(str(source).partition(".")[0]):
        return timm.create_model(str(source), pretrained=True).state_dict()
    return read_weights(source)


def trunk_arguments(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a ViT-Adapter must be told at its creation to take these weights into its trunk."""
    return {"preserve": True} if any(".ls_pos." in name for name in weights) else {}


def load_trunk(adapter: Any, source: str | Path | Mapping[str, Tensor]) -> list[str]:
    """Load a classification model's weights into the trunk of a ViT-Adapter.

    Its class token is dropped with its row, the table is resampled, layer scales that it lacks start at one, and of a
    Last LN that the trunk has not nothing is taken.

    Args:
        adapter: The ViT-Adapter, changed in place.
        source: As for `read_trunk`, or weights by timm's or official names.

    Returns:
        What was not taken over, in words.

    Raises:
        UserError: The weights cannot be read, or are another architecture's or another scheme's.
    """
    trunk = adapter.trunk
    is_read = isinstance(source, Mapping)
    weights = dict(source) if isinstance(source, Mapping) else read_trunk(source)
    size = None if is_read or not Path(str(source)).expanduser().exists() else read_origin(str(source)).image_size
    told = []
    if isinstance(trunk.norm, nn.Identity):
        left = [name for name in weights if name.startswith(_OF_LAST_NORM)]
        told = ["the Last LN is left out"] if left else []
        weights = {name: value for name, value in weights.items() if name not in left}
    for name, value in trunk.state_dict().items():
        if name.endswith((".ls1.gamma", ".ls2.gamma")) and not _has_scale(name, weights):
            weights[name] = torch.ones_like(value)
    what = "the weights" if is_read else str(source)
    return told + load_weights(trunk, weights, what=what, image_size=size)


def _has_scale(name: str, weights: Mapping[str, Tensor]) -> bool:
    block, scale, _ = name.rsplit(".", 2)
    return any(f"{block}.{one}" in weights for one in (f"{scale}.gamma", f"gamma_{scale[-1]}"))
