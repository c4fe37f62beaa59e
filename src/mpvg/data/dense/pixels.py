"""Reading the pixels of an image and of a mask so that they lie on each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mpvg.data.images import Size, opened, read_picture
from mpvg.errors import UserError

_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")


def read_of_size(path: Path, size: Size, described_by: str) -> Image.Image:
    """Return an image as it is stored, or upright where only then it has the size of what was annotated.

    Most sets are annotated on the stored pixels, whatever the EXIF data say of the way up; some on the upright image.

    Args:
        path: The image's file.
        size: Height and width that annotations are for.
        described_by: What says so, for the error.

    Returns:
        The image in RGB.

    Raises:
        BadImageError: It cannot be read.
        UserError: It is of another size.
    """
    expected = size[1], size[0]
    stored = read_picture(path, upright=False)
    if stored.size == expected:
        return stored
    upright = read_picture(path)
    if upright.size == expected:
        return upright
    raise UserError(
        f"{path} has {stored.width} x {stored.height} pixels, {described_by} says {size[1]} x {size[0]}: "
        "give the image and its annotation in one size."
    )


def read_ids(path: Path) -> npt.NDArray[np.int64]:
    """Return the ids (H, W) that a mask has: grey values of 8 or 16 bits, or places in a palette.

    Args:
        path: The mask's file.

    Raises:
        BadImageError: It cannot be read.
        UserError: It has colours.
    """
    with opened(path) as image:
        if image.mode in _MODES:
            return np.asarray(image).astype(np.int64)
        mode = image.mode
    raise UserError(f"{path} is of mode {mode}: a mask has one channel of ids, 8-bit, 16-bit or with a palette.")
