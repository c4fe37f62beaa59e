"""Images with masks that name the class of each pixel."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from mpvg.data.dense import ade20k
from mpvg.data.dense.class_list import ClassList, class_list, read_class_list
from mpvg.data.dense.coco import GENERATED, Choice, CocoSplit, is_coco, open_coco
from mpvg.data.dense.labels import IGNORED
from mpvg.data.dense.pixels import read_ids, read_of_size
from mpvg.data.dense.split import ClassMap, DenseData, DenseSplit
from mpvg.data.images import BadImageError, image_names_below
from mpvg.errors import UserError

BACKGROUND = "background"
_CHECKED = 1000  # masks of a split: reading as many takes seconds; of more, each is checked as it is read
_SPLITS = ("train", "val", "test")


def open_masks(source: str, *, ignored: Collection[int] = (), background: bool = False, choice: Choice) -> DenseData:
    """Open a set of images and masks.

    Args:
        source: A folder with ADE20K's layout (images/training, annotations/training, and of validation); one with
            train/images, train/masks, and maybe val/ and test/ likewise, and classes.txt; one with COCO's layout, whose
            outlines are filled, smaller objects over larger ones; or "generated", shapes to try a command on.
        ignored: Ids of masks that have no class, beside 255 and ADE20K's 0.
        background: Of outlines, whether pixels outside all of them are a class, the first; otherwise they are ignored.
        choice: Which images of outlines to take; of other layouts, what to do with images that cannot be read.

    Returns:
        The set.

    Raises:
        UserError: The layout is another, files are missing, or a mask has ids without a class.
    """
    folder = Path(source).expanduser()
    if source == GENERATED or is_coco(folder):
        return _from_outlines(open_coco(source, choice=choice), background=background)
    if background:
        raise UserError("--data.background is for outlines in COCO's format: masks have an id for it, or none.")
    if choice.min_side or choice.limit is not None:
        raise UserError("--data.min_side and --data.limit are for outlines in COCO's format: leave them out.")
    if (folder / "images" / "training").is_dir():
        known: ClassList | None = class_list(
            ade20k.CLASSES, range(1, len(ade20k.CLASSES) + 1), ignored={0, *ignored}, where="the classes of ADE20K"
        )
        names = {"train": "training", "val": "validation"}
        folders = {split: (folder / "images" / name, folder / "annotations" / name) for split, name in names.items()}
    else:
        known = read_class_list(folder, ignored=ignored) if (folder / "train" / "masks").is_dir() else None
        folders = {split: (folder / split / "images", folder / split / "masks") for split in _SPLITS}
    found = {split: pair for split, pair in folders.items() if pair[0].is_dir() or pair[1].is_dir()}
    if known is None or "train" not in found:
        raise UserError(
            f"--data {source!r} has no train/images and train/masks, no images/training, and no annotations in COCO's "
            "format: give a folder with one of these layouts."
        )
    splits = {name: _MaskSplit(*pair, known, skip_bad_images=choice.skip_bad_images) for name, pair in found.items()}
    for split in splits.values():
        split.check()
    tested = list(splits)[-1]
    return DenseData(
        name=folder.resolve().name,
        note=f"Masks of {folder.resolve().name}, "
        + ("evaluated on the images of training." if tested == "train" else f"tested on {tested}."),
        classes=known.classes,
        category_ids=known.ids,
        train=splits["train"],
        val=splits.get("val"),
        test=splits[tested],
    )


class _MaskSplit(DenseSplit[ClassMap]):
    def __init__(self, images: Path, masks: Path, known: ClassList, *, skip_bad_images: bool) -> None:
        pairs = _pairs(images, masks)
        super().__init__(count=len(pairs), labels=None, skip_bad_images=skip_bad_images)
        self._known = known
        # Arrays: of lists of words, each worker would copy the pages, as Python counts references in them
        self._images, self._masks = np.array([[os.fsencode(name) for name in pair] for pair in pairs]).T

    def sample(self, index: int) -> tuple[Image.Image, ClassMap]:
        labels = self._labels(index)
        height, width = labels.shape
        return read_of_size(Path(self.where(index)), (height, width), f"its mask {self._mask(index)}"), labels

    def read(self, index: int) -> Image.Image:
        return self.sample(index)[0]

    def where(self, index: int) -> str:
        return os.fsdecode(bytes(self._images[index]))

    def parts(self) -> list[str]:
        files = [path for index in range(len(self)) for path in (self.where(index), str(self._mask(index)))]
        known = repr((self._known.ids, self._known.ignored))
        return [known, *(f"{os.path.basename(file)} {os.stat(file).st_size}" for file in files)]

    def check(self) -> None:
        """Read the masks, if there are not too many of them, so that a wrong id is told before training."""
        if len(self) > _CHECKED:
            return
        for index in range(len(self)):
            try:
                self._labels(index)
            except BadImageError as error:
                if not self.skip_bad_images:
                    raise error.with_option() from error

    def _mask(self, index: int) -> Path:
        return Path(os.fsdecode(bytes(self._masks[index])))

    def _labels(self, index: int) -> ClassMap:
        path = self._mask(index)
        return self._known.labels(read_ids(path), str(path))


class _OutlineSplit(DenseSplit[ClassMap]):
    """Class maps of a file of outlines."""

    def __init__(self, objects: CocoSplit, *, background: bool) -> None:
        super().__init__(count=len(objects), labels=None, skip_bad_images=objects.skip_bad_images)
        self._objects, self._background = objects, background
        self.skipped = objects.skipped  # one account of a set

    def sample(self, index: int) -> tuple[Image.Image, ClassMap]:
        return self.read(index), self._filled(index)

    def read(self, index: int) -> Image.Image:
        return self._objects.read(index)

    def where(self, index: int) -> str:
        return self._objects.where(index)

    def parts(self) -> list[str]:
        return [f"background {self._background}", *self._objects.parts()]

    def _filled(self, index: int) -> ClassMap:
        found, too_small = self._objects.objects(index), self._objects.too_small(index)
        labels: ClassMap = np.full(found.size, 0 if self._background else IGNORED, np.uint8)
        drawn = [
            *zip(found.areas, found.labels - (0 if self._background else 1), found.masks, strict=True),
            *((area, IGNORED, mask) for area, mask in zip(too_small.areas, too_small.masks, strict=True)),
        ]
        for _, label, mask in sorted(drawn, key=lambda one: -one[0]):
            labels[mask.astype(bool)] = label
        return labels


def _from_outlines(data: DenseData, *, background: bool) -> DenseData:
    splits = [
        _OutlineSplit(split, background=background) if isinstance(split, CocoSplit) else None
        for split in (data.train, data.val, data.test)
    ]
    train, val, test = splits
    assert train is not None
    assert test is not None
    classes = (BACKGROUND, *data.classes) if background else data.classes
    if len(classes) > IGNORED:
        raise UserError(f"{data.name} has {len(classes)} classes: {IGNORED} are possible.")
    return DenseData(
        name=data.name,
        note=data.note.replace("Objects of", "Outlines of"),
        classes=classes,
        category_ids=tuple(range(len(classes))),
        train=train,
        val=val,
        test=test,
        remarks=data.remarks,
    )


def _pairs(images: Path, masks: Path) -> list[tuple[str, str]]:
    """Return each image and its mask, which has the same name but for its ending."""
    found = [_by_stem(folder) for folder in (images, masks)]
    for folder, files, other in ((masks, found[0], found[1]), (images, found[1], found[0])):
        alone = sorted(set(files) - set(other))
        if alone:
            what = "mask" if folder == masks else "image"
            raise UserError(
                f"{files[alone[0]]} has no {what} in {folder} ({len(alone)} of {len(files)} have none): add it, or "
                "take the file away."
            )
    if not found[0]:
        raise UserError(f"{images} has no images: give a set that has some.")
    return [(found[0][stem], found[1][stem]) for stem in sorted(found[0])]


def _by_stem(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: images and masks are needed in folders beside each other.")
    found: dict[str, str] = {}
    for name in image_names_below(folder):
        stem = os.path.splitext(os.path.relpath(name, folder))[0]
        if stem in found:
            raise UserError(f"{name} and {found[stem]} have the same name but for the ending: rename one of them.")
        found[stem] = name
    return found
