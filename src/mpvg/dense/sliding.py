"""Predicting large images by windows that slide over them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def slide(model_call: Callable[[Tensor], Tensor], image: Tensor, *, crop: int, stride: int, num_classes: int) -> Tensor:
    """Return the logits of a model that sees windows, averaged where these overlap.

    The windows of a row or column begin `stride` apart; the last is moved back so that it ends with the image.

    Args:
        model_call: From pixels (B, C, h, w) to logits (B, K, h, w).
        image: Pixels (B, C, H, W), as the model takes them.
        crop: Side of a window in pixels; an image that is smaller has one window of its own size.
        stride: Pixels between the beginnings of two windows, at most a window.
        num_classes: K.

    Returns:
        Logits (B, K, H, W).
    """
    assert 0 < stride <= crop, (stride, crop)
    batch, _, height, width = image.shape
    total, seen = image.new_zeros(batch, num_classes, height, width), image.new_zeros(height, width)
    for top in _starts(height, crop, stride):
        for left in _starts(width, crop, stride):
            rows, columns = slice(top, top + crop), slice(left, left + crop)
            total[..., rows, columns] += model_call(image[..., rows, columns])
            seen[rows, columns] += 1
    return total / seen


def _starts(side: int, crop: int, stride: int) -> list[int]:
    last = max(side - crop, 0)
    return [*range(0, last, stride), last]
