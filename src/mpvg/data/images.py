"""Image files as uint8 arrays: the one way in which training, testing and prediction see pixels."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mpvg.errors import UserError

Size = tuple[int, int]  # height, width
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class BadImageError(UserError):
    """An image file that cannot be used: its path and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} cannot be read as an image ({self.reason}): repair or remove it."

    def with_option(self) -> UserError:
        """Return the error with the option that leaves such images out."""
        return UserError(f"{str(self)[:-1]}, or leave such images out with --skip-bad-images.")


class Header(NamedTuple):
    """What an image file says before its pixels are decoded: its size once upright, and whether it is grey."""

    size: Size
    grey: bool


def find_images(path: Path) -> list[Path]:
    """Return an image file itself, or all image files below a folder, sorted.

    Args:
        path: A file, or a folder; what is hidden in it is left out.

    Returns:
        Paths, at least one.

    Raises:
        UserError: There is no such path, or the folder holds no images.
    """
    try:
        if path.is_file():
            return [path]
        found = images_below(path)
    except (OSError, ValueError) as error:  # missing, forbidden, too long, or not a path at all
        raise UserError(
            f"{str(path)[:200]!r} cannot be read ({error}): name an image or a folder of images."
        ) from error
    if not found:
        raise UserError(f"{path} holds no images ({', '.join(SUFFIXES)}): name an image or a folder of images.")
    return found


def images_below(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted; those that are hidden, or in a hidden folder, are left out.

    Links to folders are followed; a folder that is reached twice counts once.
    """
    return [Path(name) for name in image_names_below(folder)]


def image_names_below(folder: Path) -> list[str]:
    """Return what `images_below` does, as plain words: a million paths would take long and much memory."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # links that lead back
            folders.clear()
            continue
        seen.add(real)
        # such as .ipynb_checkpoints, full of copies
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(parent, name) for name in names if name.lower().endswith(SUFFIXES) and name[0] != "."]
    return sorted(found, key=lambda name: name.split(os.sep))


def read_header(path: Path) -> Header:
    """Return the size and colours of an image file without decoding it, where its format allows.

    Args:
        path: The file.

    Returns:
        Its size and whether it is grey.

    Raises:
        BadImageError: It is no image, or one that cannot be used.
    """
    with opened(path) as image:
        if image.format == "TIFF":
            image.load()  # before, versions of Pillow differ in whether the size is that of the upright image
        width, height = image.size
        grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        return Header((width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width), grey)


def read_image(path: Path, *, size: Size | None, channels: int) -> npt.NDArray[np.uint8]:
    """Return the pixels of an image file, upright, of its first frame.

    Args:
        path: The file.
        size: Height and width to resize it to, bicubic, without keeping its proportions; None keeps its size.
        channels: 1 for grey, 3 for RGB.

    Returns:
        Pixels (H, W, channels).

    Raises:
        BadImageError: It cannot be read or decoded, or its pixels are floating-point.
        UserError: The number of channels is neither 1 nor 3.
    """
    _check_channels(channels)
    with opened(path) as image:
        return _pixels(image, size, channels)


def read_picture(path: Path, content: bytes | None = None, *, upright: bool = True) -> Image.Image:
    """Return an image as a Pillow image, decoded and RGB, of its first frame.

    Args:
        path: The file; what to call it in errors where its bytes are given.
        content: The bytes of an image that is no file of its own.
        upright: Turn it as its EXIF data say.

    Returns:
        The image, of the pixels that `read_image` returns.

    Raises:
        BadImageError: It cannot be read or decoded, or its pixels are floating-point.
    """
    with opened(path, content) as image:
        return _in_colours(image, 3, upright=upright)


def to_pixels(image: Image.Image | npt.NDArray[np.uint8], *, size: Size | None, channels: int) -> npt.NDArray[np.uint8]:
    """Return the pixels of an image in memory as `read_image` returns those of a file.

    Args:
        image: A Pillow image of any mode but floating-point, or an array (H, W), (H, W, 1) or (H, W, 3) of uint8.
        size: Height and width to resize it to; None keeps its size.
        channels: 1 for grey, 3 for RGB. Transparency is dropped.

    Returns:
        Pixels (H, W, channels).

    Raises:
        UserError: The image is of another kind, or cannot be decoded.
    """
    _check_channels(channels)
    if not isinstance(image, np.ndarray | Image.Image):
        raise UserError(f"an image of type {type(image).__name__}: give a path, a Pillow image or a NumPy array.")
    picture = _from_array(image) if isinstance(image, np.ndarray) else image
    try:
        return _pixels(picture, size, channels)
    except Exception as error:  # as in a file
        reason = error_in_words(error)
        raise UserError(
            f"an image of mode {picture.mode} cannot be read ({reason}): repair it or leave it out."
        ) from error


def empty_images(count: int, size: Size, channels: int) -> npt.NDArray[np.uint8]:
    """Return an array (count, H, W, channels) to fill, or a UserError where it is larger than the memory."""
    try:
        return np.empty((count, *size, channels), np.uint8)
    except MemoryError as error:
        need = count * size[0] * size[1] * channels / 2**30
        raise UserError(
            f"{count} images of {size[1]} x {size[0]} pixels need {need:.0f} GiB of memory: use a "
            "smaller --img-size, or mpvg fit with --data.workers 8, say."
        ) from error


def resizing_in_words(found: Collection[Size], size: Size) -> str:
    """Return what resizing images of the sizes found to one size did, width before height; "" where it did nothing."""
    kinds = sorted(set(found), key=lambda size: (size[0] * size[1], size))
    if kinds == [size]:
        return ""
    smallest, largest = (f"{width} x {height}" for height, width in (kinds[0], kinds[-1]))
    what = f"{len(kinds)} sizes, {smallest} to {largest}" if len(kinds) > 1 else smallest
    return f"images of {what} pixels, resized to {size[1]} x {size[0]}"


def error_in_words(error: Exception) -> str:
    """Return what an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def opened(path: Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image file, not yet decoded; what is raised while it is open becomes a BadImageError."""
    try:
        # A path would let Pillow map the file, which scrambles uncompressed TIFFs that lie on their side (Pillow 13).
        with path.open("rb") if content is None else BytesIO(content) as file, Image.open(file) as image:
            _check_depth(image)
            yield image
    except UnidentifiedImageError as error:
        raise BadImageError(path, "empty, or no image of a known format") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise BadImageError(path, error_in_words(error)) from error


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise UserError(f"channels {channels}: images are read with 1 (grey) or 3 (RGB).")


def _check_depth(image: Image.Image) -> None:
    if image.mode == "F":
        raise UserError("floating-point pixels, where 8 or 16 bits are needed")


def _from_array(image: npt.NDArray[np.uint8]) -> Image.Image:
    if image.dtype != np.uint8 or 0 in image.shape or not (image.ndim == 2 or image.shape[2:] in ((1,), (3,))):
        raise UserError(f"an image of {image.dtype} {image.shape}: give uint8 (H, W), (H, W, 1) or (H, W, 3).")
    return Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)


def _pixels(picture: Image.Image, size: Size | None, channels: int) -> npt.NDArray[np.uint8]:
    picture = _in_colours(picture, channels, upright=True)
    if size is not None and picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.array(picture).reshape(picture.height, picture.width, channels)


def _in_colours(picture: Image.Image, channels: int, *, upright: bool) -> Image.Image:
    """Decode an image, turn it upright if asked to, and make it grey (1 channel) or RGB (3)."""
    _check_depth(picture)
    picture.load()  # all of it, so that a truncated file is noticed, and EXIF data behind the pixels found
    if upright and _orientation(picture) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow's own conversion would cut off at 255
        picture = Image.fromarray(np.round(np.asarray(picture).clip(0, 65535) / 257).astype(np.uint8))
    elif picture.mode == "P":  # Pillow warns of other ways to be rid of its transparency
        picture = picture.convert("RGBA")
    return picture.convert("L" if channels == 1 else "RGB")


def _orientation(image: Image.Image) -> int:
    """Return how an image lies, as EXIF numbers it: 1 is upright, and from 5 to 8 it lies on its side."""
    if image.format == "TIFF":  # Pillow turns it upright as it decodes
        return 1
    try:
        # Not image.getexif(): that of PNG decodes all pixels to look behind them.
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data say nothing, and do no harm to the pixels
        return 1
