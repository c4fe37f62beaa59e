"""How large an image is made."""

from __future__ import annotations

from mpvg.data.images import Size


def fitted(size: Size, *, short: float, long: float) -> Size:
    """Return the size of an image once its short side is `short`, or its long side `long` where that is smaller.

    Args:
        size: Height and width.
        short: Pixels.
        long: Pixels.

    Returns:
        Height and width in the same proportions, rounded to whole pixels, at least 1.
    """
    factor = scale(size, short=short, long=long)
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return height, width


def scale(size: Size, *, short: float, long: float) -> float:
    """Return the factor of `fitted`, before rounding."""
    return min(short / min(size), long / max(size))


def rounded_up(size: Size, multiple: int) -> Size:
    """Return the next larger size whose sides are multiples of a number."""
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple
