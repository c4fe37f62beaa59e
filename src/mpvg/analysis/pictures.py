"""The images that models are analysed on: held-out ones of a labelled set, or any image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpvg.analysis.samples import chosen_in_words, spread
from mpvg.data.images import BadImageError, find_images, read_image, resizing_in_words, to_pixels
from mpvg.data.preprocessing import Preprocessing, eval_batch_size
from mpvg.data.sources import load_data
from mpvg.errors import UserError

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """Images that each model sees at its own size.

    Args:
        note: What they are, in a sentence.
        read: Returns the pixels (H, W, C) of image i for a size (H, W) and a number of channels.
        count: How many there are.
        labels: Class of each; None where they have none.
        classes: Names of the classes; None where they have none.
        size: Height and width before they are resized for a model; None for files of any size.
    """

    note: str
    read: Callable[[int, tuple[int, int], int], Pixels]
    count: int
    labels: Tensor | None
    classes: tuple[str, ...] | None
    size: tuple[int, int] | None = None
    unit: ClassVar[str] = "images"

    def pixels(self, image: int, preprocessing: Preprocessing) -> Pixels:
        """Return an image (H, W, C) at the size that a model takes."""
        return self.read(image, preprocessing.size, preprocessing.channels)

    def batches(
        self, preprocessing: Preprocessing, *, size: int | None = None, count: int | None = None, device: str = "cpu"
    ) -> Iterator[tuple[tuple[Tensor], Tensor | None]]:
        """Yield preprocessed images (B, C, H, W), alone in a tuple, and their labels (B,), None without.

        Args:
            preprocessing: Of the model.
            size: Images a batch; None for as many as their size allows.
            count: How many of all images, spread evenly; None for all.
            device: Where the model computes.
        """
        rows = spread(self.count, self.count if count is None else count)
        size = size or eval_batch_size(preprocessing.size)
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            pixels = torch.from_numpy(np.stack([self.pixels(i, preprocessing) for i in chosen]))
            labels = None if self.labels is None else self.labels[chosen]
            yield (preprocessing(pixels.permute(0, 3, 1, 2).to(device)),), labels

    def batch_count(self, preprocessing: Preprocessing, *, count: int | None = None) -> int:
        """Return how many `batches` there are."""
        images = self.count if count is None else min(count, self.count)
        return -(-images // eval_batch_size(preprocessing.size))

    def remarks(self, label: str, preprocessing: Preprocessing) -> list[str]:
        """Return sentences on what the preprocessing of a model, called `label`, did to the images."""
        if self.size in (None, preprocessing.size):
            return []
        return [f"For {label}, {resizing_in_words([self.size], preprocessing.size)}."]

    def name(self, image: int) -> str:
        """Return the class of an image, or ""."""
        if self.labels is None or self.classes is None:
            return ""
        return self.classes[int(self.labels[image])]


def load_pictures(source: str, *, count: int, img_size: int | None, like: Preprocessing, skip_bad: bool) -> Pictures:
    """Load the images to analyse on.

    Args:
        source: A labelled set as `mpvg compare` takes it, of which the test split is used; or an image file, or a
            folder of image files without train/ and test/.
        count: How many, spread evenly over those there are; all where there are fewer.
        img_size: Side to resize a labelled set to, as its models were trained; None keeps its size.
        like: For sets of mixed sizes, the size to resize them to.
        skip_bad: Leave out images that cannot be read.

    Returns:
        The images.

    Raises:
        UserError: There are no images, or they cannot be read.
    """
    path = Path(source).expanduser()
    unlabelled = path.is_file() and path.suffix != ".npz"
    unlabelled |= path.is_dir() and not (path / "train").is_dir() and not _is_a_set(source)
    if unlabelled:
        return _of_files(path, count, like=like, skip_bad=skip_bad)
    data = load_data(source, img_size=img_size, mixed_size=like.size, skip_bad_images=skip_bad)
    rows = np.array(spread(len(data.test), count))
    if not len(rows):
        raise UserError(f"--data {source}: {data.name} has no test images: name a set that has some.")
    split = data.test.take(rows)

    def read(image: int, size: tuple[int, int], channels: int) -> Pixels:
        return to_pixels(split.images[image], size=size, channels=channels)

    note = chosen_in_words(len(rows), len(data.test), f"test images of {data.name}")
    return Pictures(note, read, len(rows), torch.from_numpy(split.labels), data.classes, data.image_size)


def _is_a_set(source: str) -> bool:
    from mpvg.data.named import recognised_in

    return recognised_in(Path(source).expanduser()) is not None


def _of_files(path: Path, count: int, *, like: Preprocessing, skip_bad: bool) -> Pictures:
    files = find_images(path)
    chosen = [files[row] for row in spread(len(files), count)]
    if skip_bad:
        chosen = [file for file in chosen if _can_be_read(file, like)]
        if not chosen:
            raise UserError(f"--data {path}: none of its images can be read: name others.")

    def read(image: int, size: tuple[int, int], channels: int) -> Pixels:
        try:
            return read_image(chosen[image], size=size, channels=channels)
        except BadImageError as error:
            raise error.with_option() from error

    return Pictures(f"{len(chosen):,} of {len(files):,} images in {path}.", read, len(chosen), None, None)


def _can_be_read(file: Path, like: Preprocessing) -> bool:
    try:
        read_image(file, size=like.size, channels=like.channels)
    except BadImageError:
        return False
    return True
