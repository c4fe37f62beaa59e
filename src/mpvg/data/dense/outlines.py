"""Outlines of objects as COCO writes them: polygons, or run lengths of a mask."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pycocotools import mask as rle_of

from mpvg.data.images import Size
from mpvg.errors import UserError

_ROUNDING = 1e-6  # square pixels that the points of a line may seem to enclose
Outline = list[list[float]] | dict[str, Any]  # polygons x1, y1, x2, y2, ..., or {"size": [H, W], "counts": ...}


class NoOutlineError(ValueError):
    """An object has no outline that encloses anything."""


class CheckedOutline(NamedTuple):
    """What is left of an outline without degenerate polygons, and the area that it encloses in square pixels."""

    content: Outline
    area: float


def outline_of(found: Any, size: Size, where: str) -> CheckedOutline:
    """Return the usable part of an annotation's segmentation.

    Args:
        found: Polygons, run lengths as numbers or as text, or anything else.
        size: Height and width of the image.
        where: What to call the annotation in errors.

    Returns:
        The outline, and the area of its mask; that of polygons without regard to where they overlap.

    Raises:
        NoOutlineError: No polygon has three points and an area within the image, or the mask is empty.
        UserError: Run lengths are not those of such an image.
    """
    if isinstance(found, dict):
        return _run_lengths(found, size, where)
    areas = [_area(polygon, size) for polygon in found] if isinstance(found, list) else []
    if not any(areas):
        raise NoOutlineError
    return CheckedOutline([polygon for polygon, area in zip(found, areas, strict=True) if area], sum(areas))


def mask_of(outline: Outline, size: Size, where: str) -> npt.NDArray[np.uint8]:
    """Return the mask (H, W) of an outline, one inside and zero outside.

    Args:
        outline: Polygons or run lengths.
        size: Height and width of the image.
        where: What to call the annotation in errors.

    Raises:
        UserError: The run lengths are damaged.
    """
    try:
        encoded = rle_of.frPyObjects(outline, *size) if _needs_encoding(outline) else outline
        return rle_of.decode(rle_of.merge(encoded) if isinstance(encoded, list) else encoded)
    except ValueError as error:
        raise UserError(f"{where} has run lengths that are damaged ({error}): repair or remove it.") from error


def _needs_encoding(outline: Outline) -> bool:
    return isinstance(outline, list) or isinstance(outline["counts"], list)


def _run_lengths(found: dict[str, Any], size: Size, where: str) -> CheckedOutline:
    counts, of_image = found.get("counts"), list(size)
    numbers = isinstance(counts, list) and all(isinstance(count, int) and count >= 0 for count in counts)
    if found.get("size") != of_image or not (isinstance(counts, str) or numbers):
        raise UserError(
            f"{where} has run lengths of size {found.get('size')}, its image is {size[1]} x {size[0]} (width x "
            f"height): run lengths of {of_image} are needed."
        )
    if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
        raise UserError(f"{where} has run lengths of {sum(counts)} pixels, its image has {size[0] * size[1]}.")
    content = {"size": of_image, "counts": counts}
    area = sum(counts[1::2]) if isinstance(counts, list) else float(rle_of.area(content))
    if not area:
        raise NoOutlineError
    return CheckedOutline(content, area)


def _area(polygon: Any, size: Size) -> float:
    """Return the area of a polygon, by the shoelace formula; 0 where it is none, or beside the image."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return 0.0
    try:
        points = np.array(polygon)
    except ValueError:  # lists of several lengths
        return 0.0
    if points.dtype.kind not in "if" or points.ndim != 1 or not np.isfinite(points).all():
        return 0.0
    xs, ys = points[0::2], points[1::2]
    if xs.max() <= 0 or ys.max() <= 0 or xs.min() >= size[1] or ys.min() >= size[0]:
        return 0.0
    area = abs(float(xs[:-1] @ ys[1:] - xs[1:] @ ys[:-1] + xs[-1] * ys[0] - xs[0] * ys[-1])) / 2
    return area if area > _ROUNDING else 0.0
