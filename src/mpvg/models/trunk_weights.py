"""Weights of a classification model as a start for the trunk of a ViT-Adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from mpvg.models.weights import load_weights
from mpvg.weight_files import read_origin, read_weights

_OF_LAST_NORM = ("norm.", "norm_pos.", "fc_norm.")


class TrunkWeights(NamedTuple):
    """Weights to start a trunk from.

    Args:
        weights: By timm's or official names.
        what: Where they come from, in words.
        image_size: Of the images that they were trained on (H, W), where that is known.
    """

    weights: Mapping[str, Tensor]
    what: str
    image_size: tuple[int, int] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What a ViT-Adapter must be told at its creation to take them into its trunk."""
        return {"preserve": True} if any(".ls_pos." in name for name in self.weights) else {}


def read_trunk(source: str | Path | Mapping[str, Tensor]) -> TrunkWeights:
    """Return the weights to start a trunk from.

    Args:
        source: A file or folder as for `mpvg.create_model`, such as a checkpoint of `mpvg fit`; timm's name of weights
            that it fetches ("deit_tiny_patch16_224.fb_in1k"); or a state dict.

    Raises:
        UserError: They cannot be read.
    """
    if isinstance(source, Mapping):
        return TrunkWeights(source, "the state dict")
    if not Path(source).expanduser().exists() and timm.is_model(str(source).partition(".")[0]):
        return TrunkWeights(timm.create_model(str(source), pretrained=True).state_dict(), str(source))
    return TrunkWeights(read_weights(source), str(source), read_origin(source).image_size)


def load_trunk(adapter: Any, source: TrunkWeights | str | Path | Mapping[str, Tensor]) -> list[str]:
    """Load a classification model's weights into the trunk of a ViT-Adapter.

    Its class token is dropped with its row, the table is resampled, layer scales that it lacks start at one, and of a
    Last LN that the trunk has not nothing is taken.

    Args:
        adapter: The ViT-Adapter, changed in place.
        source: As for `read_trunk`, or what it returned.

    Returns:
        What was not taken over, in words.

    Raises:
        UserError: The weights cannot be read, or are another architecture's or another scheme's.
    """
    trunk, told = adapter.trunk, []
    given, what, size = source if isinstance(source, TrunkWeights) else read_trunk(source)
    weights = dict(given)
    if isinstance(trunk.norm, nn.Identity):
        left = [name for name in weights if name.startswith(_OF_LAST_NORM)]
        told = ["the Last LN is left out"] if left else []
        weights = {name: value for name, value in weights.items() if name not in left}
    for name, value in trunk.state_dict().items():
        if name.endswith((".ls1.gamma", ".ls2.gamma")) and not _has_scale(name, weights):
            weights[name] = torch.ones_like(value)
    return told + load_weights(trunk, weights, what=what, image_size=size)


def _has_scale(name: str, weights: Mapping[str, Tensor]) -> bool:
    block, scale, _ = name.rsplit(".", 2)
    return any(f"{block}.{one}" in weights for one in (f"{scale}.gamma", f"gamma_{scale[-1]}"))
