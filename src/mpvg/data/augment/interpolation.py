"""The weights of the pixels around a place."""

from __future__ import annotations

import torch
from torch import Tensor

RESIZING, TRANSFORMING = -0.5, -1.0  # Pillow's two cubics


def neighbours(position: Tensor, bicubic: Tensor, cubic: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what pixels give to places between them.

    Args:
        position: Places, where whole numbers are pixels.
        bicubic: Whether a place is interpolated bicubic, else bilinear, in bool, of a shape that fits.
        cubic: Which cubic: its slope one pixel away from its top.

    Returns:
        The pixel before each place, whole but in float32, and the weights of the four from one before that on.
    """
    start = position.floor()
    part = position - start
    rest = 1 - part
    inner = part * rest * bicubic
    outer, bend = inner * cubic, 1 + cubic
    return start, (
        outer * rest,
        torch.addcmul(rest, inner, torch.sub(rest, part, alpha=bend)),
        torch.addcmul(part, inner, torch.sub(part, rest, alpha=bend)),
        outer * part,
    )
