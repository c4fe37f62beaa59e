"""Sets of objects in COCO's format."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from mpvg.data.dense.annotations import Annotations, checked_annotations, read_annotations
from mpvg.data.dense.generated import generated_set
from mpvg.data.dense.outlines import mask_of
from mpvg.data.dense.pixels import read_of_size
from mpvg.data.dense.sizes import scale
from mpvg.data.dense.split import DenseData, DenseSplit, Objects
from mpvg.data.large.split import Rows
from mpvg.errors import UserError

GENERATED = "generated"


class Part(NamedTuple):
    """A file of annotations and the folder of its images."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class Choice:
    """Which images and objects of a set are taken.

    Args:
        short: Short side of evaluated images, in pixels.
        long: What their long side may have at most.
        min_side: Pixels that the sides of an object's box have at least at that size.
        limit: How many images, of those with objects and in ascending order of their ids; None for all.
        keeps_empty: Train on images without objects too.
        skip_bad_images: Leave out images that cannot be read, and objects of images that are not listed.
    """

    short: int
    long: int
    min_side: int = 0
    limit: int | None = None
    keeps_empty: bool = True
    skip_bad_images: bool = False


def open_coco(source: str, *, train: Part | None = None, val: Part | None = None, choice: Choice) -> DenseData:
    """Open a set in COCO's format; no image is decoded for it.

    Args:
        source: A folder with annotations/instances_train2017.json and train2017/ (also without the year, and of val),
            or with instances.json and images/; or "generated", shapes to try a command on.
        train: Files to train on, in place of the source's.
        val: Files to evaluate on, likewise; without any, those to train on.
        choice: Which images and objects to take.

    Returns:
        The set.

    Raises:
        UserError: Files are missing, do not hold together, or have no objects.
    """
    if source == GENERATED and train is None:
        content, pictures = generated_set()
        annotations = checked_annotations(content, Path(GENERATED))
        return _data(GENERATED, "Generated shapes", _chosen(annotations, _Drawn(pictures), choice), None, choice)
    if train is None:
        train, found = _parts(Path(source).expanduser())
        val = val or found
    folder = train.annotations.parent if train.annotations.parent.name != "annotations" else train.images.parent
    name = folder.resolve().name
    evaluated = None if val is None else _opened(val, choice)
    return _data(name, f"Objects of {name}", _opened(train, choice), evaluated, choice)


def is_coco(folder: Path) -> bool:
    """Say whether a folder has COCO's layout."""
    return (folder / "instances.json").is_file() or any(_annotation_files(folder, "train"))


class ImageSource(Protocol):
    """Where the images of a file of annotations are."""

    def read(self, name: str, annotations: Annotations, image: int) -> Image.Image:
        """Return an image in RGB, by its name and its place."""

    def where(self, name: str) -> str:
        """Return where an image lies, for errors."""


class CocoSplit(DenseSplit[Objects]):
    """Images of a file of annotations.

    Args:
        annotations: Of all images of the file.
        images: Where the images are.
        rows: Which of the file's images these are (count,).
        kept: Which of its objects are large enough (N,).
        skip_bad_images: What to do with images that cannot be read.
    """

    def __init__(
        self,
        annotations: Annotations,
        images: ImageSource,
        *,
        rows: Rows,
        kept: npt.NDArray[np.bool_],
        skip_bad_images: bool,
    ) -> None:
        super().__init__(count=len(rows), labels=None, skip_bad_images=skip_bad_images)
        self.annotations, self.images, self.rows, self.kept = annotations, images, rows, kept

    def sample(self, index: int) -> tuple[Image.Image, Objects]:
        return self.read(index), self.objects(index)

    def read(self, index: int) -> Image.Image:
        image = int(self.rows[index])
        return self.images.read(self.annotations.file(image), self.annotations, image)

    def where(self, index: int) -> str:
        return self.images.where(self.annotations.file(int(self.rows[index])))

    def objects(self, index: int) -> Objects:
        """Return the objects of an image that are large enough, without reading it."""
        return self._objects(index, kept=True)

    def too_small(self, index: int) -> Objects:
        """Return the objects of an image that were left out for their size."""
        return self._objects(index, kept=False)

    def count_too_small(self) -> int:
        """Return how many objects of these images were left out for their size."""
        return int(self._per_image(~self.kept)[self.rows].sum())

    def has_objects(self) -> npt.NDArray[np.bool_]:
        """Say which images have objects to learn (count,): large enough, and no crowds."""
        return self._per_image(self.kept & ~self.annotations.crowds)[self.rows] > 0

    def taking(self, chosen: npt.NDArray[np.bool_]) -> CocoSplit:
        """Return some of the images, by whether each is chosen (count,)."""
        taken = CocoSplit(
            self.annotations,
            self.images,
            rows=self.rows[chosen],
            kept=self.kept,
            skip_bad_images=self.skip_bad_images,
        )
        taken.skipped = self.skipped  # one account of a set
        return taken

    def parts(self) -> list[str]:
        kept = np.packbits(self.kept).tobytes().hex()
        return [self.annotations.digest(), kept, *map(_with_size, map(self.where, range(len(self))))]

    def _per_image(self, chosen: npt.NDArray[np.bool_]) -> Rows:
        """Return how many objects of each image of the file are chosen, by whether each object is."""
        before = np.concatenate([[0], np.cumsum(chosen)])
        return np.diff(before[self.annotations.starts])

    def _objects(self, index: int, *, kept: bool) -> Objects:
        annotations, image = self.annotations, int(self.rows[index])
        size, identity = annotations.size(image), int(annotations.image_ids[image])
        places = [place for place in annotations.objects(image) if self.kept[place] == kept]
        boxes = annotations.boxes[places]
        masks = np.zeros((len(places), *size), np.uint8)
        for mask, place in zip(masks, places, strict=True):
            mask[:] = mask_of(annotations.outline(place), size, f"an object of image {identity} of {annotations.path}")
        return Objects(
            image_id=identity,
            size=size,
            boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            labels=annotations.labels[places],
            masks=masks,
            areas=annotations.areas[places],
            crowds=annotations.crowds[places],
        )


class _Folder(NamedTuple):
    """Image files."""

    path: Path

    def read(self, name: str, annotations: Annotations, image: int) -> Image.Image:
        return read_of_size(Path(self.where(name)), annotations.size(image), str(annotations.path))

    def where(self, name: str) -> str:
        return os.path.join(self.path, name)


class _Drawn(NamedTuple):
    """Images that are in memory."""

    pictures: dict[str, Image.Image]

    def read(self, name: str, annotations: Annotations, image: int) -> Image.Image:
        return self.pictures[name]

    def where(self, name: str) -> str:
        return f"{GENERATED} {name}"


def _parts(folder: Path) -> tuple[Part, Part | None]:
    """Return what to train on and what to evaluate on, None where that is the same."""
    if (folder / "instances.json").is_file():
        return Part(folder / "instances.json", folder / "images"), None
    found = {name: _annotation_files(folder, name) for name in ("train", "val")}
    for name, files in found.items():
        if len(files) != 1:
            there = ", ".join(file.name for file in files) or "none"
            raise UserError(
                f"--data {str(folder)!r}: one annotations/instances_{name}*.json with {name}*/ beside it, or "
                f"instances.json with images/, is needed, and there is {there}: name the files with "
                "--data.train_annotations and --data.train_images, and val likewise."
            )
    train, val = (
        Part(file, folder / file.stem.removeprefix("instances_")) for files in found.values() for file in files
    )
    return train, val


def _annotation_files(folder: Path, name: str) -> list[Path]:
    return sorted((folder / "annotations").glob(f"instances_{name}*.json"))


def _opened(part: Part, choice: Choice) -> CocoSplit:
    annotations = read_annotations(part.annotations, skip_bad_images=choice.skip_bad_images)
    split = _chosen(annotations, _Folder(part.images), choice)
    missing = [file for file in map(split.where, range(len(split))) if not os.path.isfile(file)]
    if missing and not choice.skip_bad_images:
        raise UserError(
            f"{missing[0]} is not there, and of {len(split)} images {len(missing)} are missing that belong to "
            f"{part.annotations}: name the folder of its images, or leave them out with --skip-bad-images."
        )
    return split


def _chosen(annotations: Annotations, images: ImageSource, choice: Choice) -> CocoSplit:
    counts = np.diff(annotations.starts)
    factors = [scale(annotations.size(i), short=choice.short, long=choice.long) for i in range(len(counts))]
    sides = annotations.boxes[:, 2:].min(axis=1) * np.repeat(factors, counts)
    rows = np.arange(len(counts)) if choice.limit is None else np.flatnonzero(counts)[: choice.limit]
    return CocoSplit(
        annotations, images, rows=rows, kept=sides >= choice.min_side, skip_bad_images=choice.skip_bad_images
    )


def _data(name: str, what: str, train: CocoSplit, val: CocoSplit | None, choice: Choice) -> DenseData:
    known = train.annotations
    if val is not None and (val.annotations.category_ids, val.annotations.classes) != (
        known.category_ids,
        known.classes,
    ):
        raise UserError(f"{val.annotations.path} lists other categories than {known.path}: give both the same.")
    tested = val or train
    remarks = [*known.remarks, *(val.annotations.remarks if val is not None else [])]
    for split in (train,) if val is None else (train, val):
        small = split.count_too_small()
        if small:
            remarks.append(
                f"Left out of {split.annotations.path.name}: {small} objects with a side below {choice.min_side} "
                f"pixels, of images with a short side of {choice.short} and a long one of {choice.long} at most."
            )
    learned = train.has_objects()
    for split in (train, tested):
        if not split.has_objects().any():
            raise UserError(
                f"{split.annotations.path} has no object that is no crowd and has sides of {choice.min_side} pixels: "
                "give a set that has some, or lower min_side."
            )
    if not choice.keeps_empty:
        remarks.append(f"Left out of training: {int((~learned).sum())} images without objects.")
        train = train.taking(learned)
    return DenseData(
        name=name,
        note=f"{what}, evaluated on {'the images of training' if val is None else val.annotations.path.name}.",
        classes=known.classes,
        category_ids=known.category_ids,
        train=train,
        val=val,
        test=tested,
        remarks=tuple(remarks),
    )


def _with_size(file: str) -> str:
    return f"{os.path.basename(file)} {os.stat(file).st_size if os.path.isfile(file) else 0}"
