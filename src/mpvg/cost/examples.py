"""What a model is counted on: images of its size, or sequences of its greatest length, without numbers in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpvg.cost.formulas import channels
from mpvg.models.mpvg_sequence import LayerwiseSequence

SEQUENCES = "mpvg_sequence"


def example(model: Any, batch: int) -> Tensor:
    """Return a model's input on the meta device: images (B, C, H, W), series (B, T, C) or token ids (B, T).

    Args:
        model: A model of this library.
        batch: B.
    """
    if not isinstance(model, LayerwiseSequence):
        return torch.empty(batch, channels(model), *model.patch_embed.img_size, device="meta")
    if model.patch_embed.vocab_size:
        return torch.empty(batch, model.max_length, dtype=torch.int64, device="meta")
    return torch.empty(batch, model.max_length, model.patch_embed.in_chans, device="meta")


def size_of(model: Any) -> tuple[int, int]:
    """Return the height and width of a model's images in pixels; of sequences 1 and their steps."""
    return (1, model.max_length) if isinstance(model, LayerwiseSequence) else model.patch_embed.img_size


def size_arguments(name: str, size: int | None) -> dict[str, int]:
    """Return what `timm.create_model` must be told for a size.

    Args:
        name: Registered name.
        size: Side of the images in pixels, of sequences their steps; None for the model's own.
    """
    if size is None:
        return {}
    return {"max_length": size} if name == SEQUENCES else {"img_size": size}
