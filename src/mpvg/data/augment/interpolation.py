"""The weights of the pixels around a place."""

from __future__ import annotations

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
    product = part * rest
    outer, inner = product * (bicubic * cubic), product * bicubic
    bend = -(1 + cubic) * inner
    return start, (
        outer * rest,
        rest + rest * inner + bend * part,
        part + part * inner + bend * rest,
        outer * part,
    )
