"""Labelled images from the digits of scikit-learn, a folder, an .npz file or one of torchvision's sets."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from mpvg.data.folder import load_folder
from mpvg.data.holdout import checked, held_out, split_validation, validation_rows
from mpvg.data.images import Size, empty_images, resizing_in_words, to_pixels
from mpvg.data.named import NAMED, load_named, parse_named, recognised_in
from mpvg.data.npz import load_npz
from mpvg.data.splits import ImageData, Split
from mpvg.errors import UserError, nearest

__all__ = [
    "BUILT_IN",
    "ImageData",
    "Split",
    "absolute_source",
    "held_out",
    "load_data",
    "split_validation",
    "validation_rows",
]

BUILT_IN = ("digits", "generated")
_LARGEST = 4096  # pixels a side
_GENERATED_CLASSES = 4


def load_data(
    source: str,
    *,
    img_size: int | None = None,
    mixed_size: Size | None = None,
    skip_bad_images: bool = False,
    holds_out: bool = True,
) -> ImageData:
    """Load a labelled set into memory.

    Args:
        source: "digits"; "generated", noise to try a command on; a
            folder with train/ and test/ (and maybe val/) of one folder a class; an .npz file with
            {train,val,test}_{images,labels}; or NAME:FOLDER for one of torchvision's sets that lies in a folder (NAME
            alone: in "." or "data"; a folder alone: where it holds one of the common ones).
        img_size: Side in pixels to resize all images to, bicubic, without keeping their proportions; None keeps the
            size that they have.
        mixed_size: Height and width for all images where they are of several sizes and `img_size` is None.
        skip_bad_images: Leave image files out that cannot be read, instead of refusing the source.
        holds_out: Whether a part of train will be held out where the source has no validation split.

    Returns:
        Images as uint8 with their labels and class names.

    Raises:
        UserError: The source does not exist, has another layout, holds images that cannot be read, or these differ in
            size and neither size is given.
    """
    if img_size is not None and not 1 <= img_size <= _LARGEST:
        raise UserError(f"--img-size {img_size} is out of range: images are held in memory, use 1 to {_LARGEST}.")
    source = os.path.expanduser(source)
    try:
        data = _load(source, img_size, mixed_size, skip_bad_images)
    except OSError as error:
        raise UserError(f"--data {source[:200]!r} cannot be read ({error}): check the path and its rights.") from error
    if img_size is not None and data.image_size != (img_size, img_size):
        data = _resized(data, (img_size, img_size))
    return checked(data, holds_out=holds_out)


def layout_of(source: str) -> str:
    """Return how a source keeps its images.

    Args:
        source: As for `load_data`, or for `mpvg.data.large.open_large`.

    Returns:
        "arrays" or "files", which `load_data` reads; "container" for what only `open_large` does, such as Parquet
        files, WebDataset shards and sets on the Hub; "" where there is no such path.
    """
    source = os.path.expanduser(source)
    kind, path = _kind(source), Path(source)
    if source.startswith("hf:") or ("{" in source and not kind):
        return "container"
    if kind == "folder":
        if (path / "train").is_dir() and any(child.is_dir() for child in (path / "train").iterdir()):
            return "files"
        return "arrays" if recognised_in(path) else "container"
    return "arrays" if source in BUILT_IN or kind == "file" or parse_named(source) is not None else ""


def absolute_source(source: str) -> str:
    """Return a source as a checkpoint keeps it: a path that exists is made absolute."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _load(source: str, img_size: int | None, mixed_size: Size | None, skip_bad_images: bool) -> ImageData:
    if source == "digits":
        return _digits()
    if source == "generated":
        side = mixed_size or (32, 32)
        return _generated((img_size, img_size) if img_size else side)
    kind, path = _kind(source), Path(source)
    if kind == "file":
        return load_npz(path)
    named = parse_named(source)
    if kind == "folder":
        if (path / "train").is_dir():
            named = None  # images in a folder that happens to be called like a set
        elif recognised := recognised_in(path):
            named = recognised, (path,)
    if named is not None:
        return load_named(*named, img_size=img_size, mixed_size=mixed_size, skip_bad_images=skip_bad_images)
    if kind == "folder":
        return load_folder(path, img_size=img_size, mixed_size=mixed_size, skip_bad_images=skip_bad_images)
    raise _unknown(source)


def _kind(source: str) -> str:
    try:
        return "folder" if Path(source).is_dir() else "file" if Path(source).is_file() else ""
    except (OSError, ValueError):  # too long, or not a path at all
        return ""


def _unknown(source: str) -> UserError:
    name, colon, _ = source.partition(":")
    known = (*BUILT_IN, *NAMED)
    guess = nearest(name, [*known, *(name.lower() for name in known)])
    if colon and "/" not in name:
        return UserError(f"--data {source[:200]!r}: no set is called {name[:200]!r}{guess}: use {', '.join(NAMED)}.")
    return UserError(
        f"--data {source[:200]!r} is no path that exists and not built in{guess}: use a folder with train/ and test/, "
        f"an .npz file, {', '.join(BUILT_IN)}, or NAME:FOLDER for one of torchvision's sets ({', '.join(NAMED)})."
    )


def _resized(data: ImageData, size: Size) -> ImageData:
    return replace(
        data,
        note=f"{data.note}; {resizing_in_words([data.image_size], size)}",
        train=_resized_split(data.train, size),
        val=None if data.val is None else _resized_split(data.val, size),
        test=_resized_split(data.test, size),
    )


def _resized_split(split: Split, size: Size) -> Split:
    channels = split.images.shape[3]
    images = empty_images(len(split), size, channels)
    for row, image in enumerate(split.images):
        images[row] = to_pixels(image, size=size, channels=channels)
    return Split(images, split.labels)


def _digits() -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    everything = Split(images, digits.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(everything)), test_size=0.2, random_state=0, stratify=digits.target)
    return ImageData(
        name="digits",
        note="Handwritten digits scanned at 8 x 8 pixels, from scikit-learn; a fixed stratified fifth is the test set",
        classes=tuple(str(name) for name in digits.target_names),
        train=everything.take(np.sort(train)),
        val=None,
        test=everything.take(np.sort(test)),
    )


def _generated(size: Size) -> ImageData:
    random = np.random.default_rng(0)

    def split(images: int) -> Split:
        labels = np.arange(images, dtype=np.int64) % _GENERATED_CLASSES
        return Split(random.integers(0, 256, (images, *size, 3), dtype=np.uint8), labels)

    return ImageData(
        name="generated images",
        note="Noise, from which nothing can be learned",
        classes=tuple(f"class {label}" for label in range(_GENERATED_CLASSES)),
        train=split(4 * _GENERATED_CLASSES),
        val=None,
        test=split(_GENERATED_CLASSES),
    )
