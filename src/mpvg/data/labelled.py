"""Labelled image files, read into one array a split: what folders and torchvision's sets of files share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mpvg.data.images import BadImageError, Header, Size, empty_images, read_header, read_image, resizing_in_words
from mpvg.data.splits import Split
from mpvg.errors import UserError

LabelledFiles = list[tuple[Path, int]]


@dataclass(frozen=True)
class FileSplits:
    """Splits by name, "path: reason" of the images left out, and what was done to the sizes in words."""

    splits: dict[str, Split]
    skipped: tuple[str, ...]
    resizing: str


def read_splits(
    files: Mapping[str, LabelledFiles],
    *,
    source: str,
    classes: tuple[str, ...],
    img_size: int | None,
    mixed_size: Size | None,
    skip_bad_images: bool,
) -> FileSplits:
    """Read all files of a set: each header first, so that the arrays are made once and of the right size.

    Args:
        files: Paths and labels of each split.
        source: What to call the set in errors.
        classes: Names of the classes, by label.
        img_size: Side in pixels to resize all images to; None keeps their one size.
        mixed_size: Height and width for all images where they are of several sizes and `img_size` is None.
        skip_bad_images: Leave images out that cannot be read, instead of refusing the set.

    Returns:
        The splits; grey where all images are, otherwise RGB.

    Raises:
        UserError: An image cannot be read, a class has none in a split, or they differ in size and none was given.
    """
    bad = _BadImages(skip=skip_bad_images)
    headers: dict[Path, Header] = {}
    for path in (path for split in files.values() for path, _ in split):
        with bad.noted():
            headers[path] = read_header(path)
    splits: dict[str, Split] = {}
    known: list[Header] = []
    size, channels = (0, 0), 0
    while True:  # again only where an image that is damaged behind its header had decided the size or the channels
        _check_classes(files, source, classes, bad.reasons)
        known = [header for path, header in headers.items() if path not in bad.reasons]
        wanted = _common_size(known, source, img_size, mixed_size), 1 if all(header.grey for header in known) else 3
        if wanted == (size, channels):
            break
        size, channels = wanted
        splits = {name: _read_split(split, size, channels, bad) for name, split in files.items()}
    return FileSplits(
        splits,
        skipped=tuple(f"{path}: {reason}" for path, reason in sorted(bad.reasons.items())),
        resizing=resizing_in_words({header.size for header in known}, size),
    )


@dataclass
class _BadImages:
    """Images that cannot be read: refused, or left out and remembered."""

    skip: bool
    reasons: dict[Path, str] = field(default_factory=dict)

    @contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except BadImageError as error:
            if not self.skip:
                raise error.with_option() from error
            self.reasons[error.path] = error.reason


def _check_classes(
    files: Mapping[str, LabelledFiles], source: str, classes: tuple[str, ...], reasons: Mapping[Path, str]
) -> None:
    for name, split in files.items():
        readable = {label for path, label in split if path not in reasons}
        for label, class_name in enumerate(classes):
            if label not in readable:
                bad = [f", {path}: {reasons[path]}" for path, of_label in split if of_label == label]
                raise UserError(
                    f"{source}: class {class_name!r} has no image in {name} that can be read ({len(bad)} cannot"
                    f"{''.join(bad[:1])}): repair or add some, or remove the class."
                )


def _common_size(headers: Collection[Header], source: str, img_size: int | None, mixed_size: Size | None) -> Size:
    sizes = Counter(header.size for header in headers)
    (height, width), _ = sizes.most_common(1)[0]
    if img_size is not None:
        return img_size, img_size
    if len(sizes) == 1:
        return height, width
    if mixed_size is None:
        raise UserError(
            f"{source}: images of {len(sizes)} sizes (mostly {width} x {height}): name a side for all with --img-size."
        )
    return mixed_size


def _read_split(files: LabelledFiles, size: Size, channels: int, bad: _BadImages) -> Split:
    images = empty_images(len(files), size, channels)
    labels: list[int] = []
    for path, label in files:
        if path not in bad.reasons:
            with bad.noted():
                images[len(labels)] = read_image(path, size=size, channels=channels)
                labels.append(label)
    return Split(images[: len(labels)], np.array(labels, np.int64))
