"""A file of annotations in COCO's format: read and checked once, and kept so that workers share its memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpvg.data.dense.outlines import NoOutlineError, Outline, outline_of
from mpvg.data.images import Size
from mpvg.errors import UserError

_IDS_END = 2**63
_LEFT_OUT = {
    "box": "degenerate boxes (no area, not numbers, or outside the image)",
    "outline": "degenerate outlines (polygons of fewer than three points or no area, empty masks)",
    "image": "objects of images that the file does not list",
}


@dataclass(frozen=True)
class Annotations:
    """The images of a set, and the objects in each, image by image in ascending order of the images' ids.

    Args:
        path: The file.
        image_ids: Of the images (I,).
        sizes: Heights and widths of the images (I, 2), in pixels as they are stored.
        files: Names of the images' files (I,), as bytes.
        category_ids: The set's own numbers of its classes, ascending: label k is category_ids[k - 1].
        classes: Names of the classes, in that order.
        starts: First object of each image, and how many there are in all (I + 1,).
        labels: Of the objects (N,), from 1.
        boxes: Left, top, width and height of the objects (N, 4), in pixels.
        areas: Of the objects (N,), in square pixels, as annotated.
        crowds: Whether an object is a crowd (N,), which is neither learned nor counted as missed.
        outlines: Polygons or run lengths of all objects, each as JSON, one after the other.
        ends: Where each object's outline ends in `outlines` (N,).
        left_out: How many objects were left out, by why.
    """

    path: Path
    image_ids: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    files: npt.NDArray[np.bytes_]
    category_ids: tuple[int, ...]
    classes: tuple[str, ...]
    starts: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    crowds: npt.NDArray[np.bool_]
    outlines: bytes
    ends: npt.NDArray[np.int64]
    left_out: Mapping[str, int]

    def file(self, image: int) -> str:
        """Return the name of an image's file, by the image's place."""
        return os.fsdecode(bytes(self.files[image]))

    def size(self, image: int) -> Size:
        """Return an image's height and width, by its place."""
        height, width = self.sizes[image].tolist()
        return height, width

    def objects(self, image: int) -> range:
        """Return the places of an image's objects."""
        return range(int(self.starts[image]), int(self.starts[image + 1]))

    def outline(self, place: int) -> Outline:
        """Return the polygons or run lengths of an object."""
        outline: Outline = json.loads(self.outlines[self.ends[place - 1] if place else 0 : self.ends[place]])
        return outline

    @property
    def remarks(self) -> list[str]:
        """Which objects were left out, and how many, in sentences."""
        return [f"Left out of {self.path.name}: {count} {_LEFT_OUT[why]}." for why, count in self.left_out.items()]

    def digest(self) -> str:
        """Return a short hash of all that is annotated."""
        found = hashlib.sha256(repr((self.category_ids, self.classes)).encode())
        for part in (self.image_ids, self.sizes, self.starts, self.labels, self.boxes, self.areas, self.crowds):
            found.update(part.tobytes())
        found.update(self.outlines)
        return found.hexdigest()[:16]


def read_annotations(path: Path, *, skip_bad_images: bool = False) -> Annotations:
    """Read a file of annotations and check it.

    Args:
        path: The JSON file.
        skip_bad_images: Leave out objects of images that the file does not list, instead of refusing it.

    Returns:
        The annotations; objects of degenerate boxes or outlines are left out and counted.

    Raises:
        UserError: The file cannot be read, or does not hold together.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a file of annotations.") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} is no JSON ({error}): give annotations in COCO's format.") from error
    return checked_annotations(content, path, skip_bad_images=skip_bad_images)


def checked_annotations(content: Any, path: Path, *, skip_bad_images: bool = False) -> Annotations:
    """Return annotations that are in memory already; see `read_annotations`."""
    tables = {name: _table(content, name, path) for name in ("images", "categories", "annotations")}
    images = _by_id(tables["images"], "image", path)
    categories = _by_id(tables["categories"], "category", path)
    for kind, found in (("images", images), ("categories", categories)):
        if not found:
            raise UserError(f"{path} lists no {kind}: give a set that has some.")
    sizes = [_size(image, path) for image in images.values()]
    labels = {category: label for label, category in enumerate(categories, start=1)}
    places = {image: place for place, image in enumerate(images)}
    left_out: Counter[str] = Counter()
    kept: list[list[_Object]] = [[] for _ in images]
    for identity, annotation in _by_id(tables["annotations"], "annotation", path).items():
        where = f"annotation {identity} of {path}"
        image, category = (_get(annotation, name, where) for name in ("image_id", "category_id"))
        if category not in labels:
            raise UserError(f"{where} is of category {category!r}, which the file does not list: add or repair it.")
        if image not in places:
            if not skip_bad_images:
                raise UserError(
                    f"{where} is of image {image!r}, which the file does not list: repair it, or leave such objects "
                    "out with --skip-bad-images."
                )
            left_out["image"] += 1
            continue
        size = sizes[places[image]]
        box = _box(annotation.get("bbox"), size)
        if box is None:
            left_out["box"] += 1
            continue
        try:
            outline = outline_of(annotation.get("segmentation"), size, where)
        except NoOutlineError:
            left_out["outline"] += 1
            continue
        area = _number(annotation.get("area"))
        kept[places[image]].append(
            _Object(
                label=labels[category],
                box=box,
                area=outline.area if area is None else area,
                crowd=_is_crowd(annotation, where),
                outline=json.dumps(outline.content).encode(),
            )
        )
    classes = tuple(_text(found, "name", f"category {i} of {path}") for i, found in categories.items())
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise UserError(f"{path} has the category {twice[0]!r} twice: give each a name of its own.")
    objects = [one for of_image in kept for one in of_image]
    if not objects:
        raise UserError(f"{path} has no object that can be used: give a set that has some.")
    return Annotations(
        path=path,
        image_ids=np.array(list(images), np.int64),
        sizes=np.array(sizes, np.int64),
        files=np.array([os.fsencode(_text(image, "file_name", f"image {i} of {path}")) for i, image in images.items()]),
        category_ids=tuple(categories),
        classes=classes,
        starts=np.cumsum([0, *(len(of_image) for of_image in kept)]),
        labels=np.array([one.label for one in objects], np.int64),
        boxes=np.array([one.box for one in objects], np.float64),
        areas=np.array([one.area for one in objects], np.float64),
        crowds=np.array([one.crowd for one in objects]),
        outlines=b"".join(one.outline for one in objects),
        ends=np.cumsum([len(one.outline) for one in objects]),
        left_out=left_out,
    )


class _Object(NamedTuple):
    label: int
    box: tuple[float, ...]
    area: float
    crowd: bool
    outline: bytes


def _table(content: Any, name: str, path: Path) -> Sequence[Any]:
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise UserError(f"{path} has no list {name!r}: give annotations in COCO's format.")
    return found


def _by_id(entries: Sequence[Any], what: str, path: Path) -> dict[int, dict[str, Any]]:
    """Return the entries of a table by their ids, ascending."""
    found: dict[int, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        identity = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(identity, int) or isinstance(identity, bool) or abs(identity) >= _IDS_END:
            raise UserError(
                f"{what} number {number} of {path} has the id {identity!r}: give each a whole number of 63 bits."
            )
        if identity in found:
            raise UserError(f"{what} id {identity} is twice in {path}: give each {what} an id of its own.")
        found[identity] = entry
    return dict(sorted(found.items()))


def _is_crowd(annotation: Mapping[str, Any], where: str) -> bool:
    value = annotation.get("iscrowd", 0)
    if value not in (0, 1):
        raise UserError(f"{where} has the iscrowd {value!r}: 0 or 1 is needed.")
    return bool(value)


def _get(entry: Mapping[str, Any], name: str, where: str) -> int:
    value = entry.get(name)
    if not isinstance(value, int):
        raise UserError(f"{where} has the {name} {value!r}: a whole number is needed.")
    return value


def _text(entry: Mapping[str, Any], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where} has the {name} {value!r}: a name is needed.")
    return value


def _size(image: Mapping[str, Any], path: Path) -> Size:
    where = f"image {image['id']} of {path}"
    height, width = (_get(image, name, where) for name in ("height", "width"))
    if min(height, width) < 1:
        raise UserError(f"{where} has {width} x {height} pixels: give the size of its file.")
    return height, width


def _box(values: Any, size: Size) -> tuple[float, ...] | None:
    """Return a box as numbers, or None where it is degenerate."""
    numbers = [_number(value) for value in values] if isinstance(values, list) else []
    found = tuple(number for number in numbers if number is not None)
    if len(found) != 4 or len(numbers) != 4:
        return None
    left, top, width, height = found
    inside = left < size[1] and top < size[0] and left + width > 0 and top + height > 0
    return found if width > 0 and height > 0 and inside else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None
