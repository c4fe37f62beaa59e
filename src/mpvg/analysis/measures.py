"""Measures of tokens and positions, as plain functions of arrays."""

from __future__ import annotations

from torch import Tensor


def correlation(tokens: Tensor, position: Tensor) -> float | None:
    """Return Pearson's correlation of two maps, flattened; None where one is constant and it is undefined.

    Args:
        tokens: Map (N, D), the batch mean of LN_l(x_l).
        position: Map (N, D), d_l.

    Returns:
        A number from -1 to 1.

    Source:
        MPVG, figures 2 and 4. Assumption: over the flattened map, the batch mean taken first.
    """
    a, b = (values.detach().double().flatten() for values in (tokens, position))
    a, b = a - a.mean(), b - b.mean()
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return None if scale <= 1e-12 * a.numel() else float((a * b).sum() / scale)
