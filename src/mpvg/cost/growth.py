"""How the relative extra of a scheme grows: the law, and the memory traffic beside it.

Per delivered position a scheme adds N D operations an image and 7 N D once a batch of B; a block of a plain vision
transformer with an MLP of ratio r has (8 + 4 r) N D^2 + 4 N^2 D. With a additions beyond the reference's, n norms and L
blocks, patch embedding and classifier left out:

    extra = (a + 7 n / B) / (L ((8 + 4 r) D + 4 N))          MPVG against `gap`: a = n = L

It falls with width, tokens and batch and does not depend on depth, but for PVG, whose a = n = L - 1.
"""

from __future__ import annotations

from typing import Final

from mpvg.cost.own_work import NORM_OPERATIONS

# Numbers read and written for each of a block's N D, every operation by itself, with attention in one kernel.
MOVED: Final = {
    "LN": 2,
    "queries, keys, values": 4,
    "attention": 4,
    "projection": 2,
    "residual": 3,
    "second LN": 2,
    "first linear of the MLP": 5,
    "GELU": 8,
    "second linear of the MLP": 5,
    "second residual": 3,
}
MOVED_BY_ADD: Final = 3  # reads LN(x) and d, writes their sum


def law(
    *, width: float, tokens: float, batch: float, mlp_ratio: float = 4, added: float = 1, norms: float = 1
) -> float:
    """Return the extra FLOPs of a scheme as a part of its architecture's matrix products.

    Args:
        width: D.
        tokens: N.
        batch: Images B that share the norms of a forward pass; infinite where there are none, as after folding.
        mlp_ratio: r, hidden width of the MLP over D.
        added: Additions a block, beyond the reference's; 1 for MPVG against `gap`.
        norms: Position norms a block.
    """
    return (added + NORM_OPERATIONS * norms / batch) / ((8 + 4 * mlp_ratio) * width + 4 * tokens)


def traffic_share(*, width: int, tokens: int, heads: int, fused: bool) -> float:
    """Return how much more memory traffic a block has for adding its position, every operation run by itself.

    Args:
        width: D.
        tokens: N.
        heads: Of attention.
        fused: Whether attention is one kernel; otherwise its maps are written, read and written, and read.
    """
    maps = 0 if fused else 4 * heads * tokens / width
    return MOVED_BY_ADD / (sum(MOVED.values()) + maps)
