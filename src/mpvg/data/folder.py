"""A folder with train/ and test/ (and maybe val/), each of one folder a class."""

from __future__ import annotations

from pathlib import Path

from mpvg.data.images import SUFFIXES, Size, image_names_below
from mpvg.data.labelled import read_splits
from mpvg.data.splits import ImageData
from mpvg.errors import UserError, nearest


def load_folder(root: Path, *, img_size: int | None, mixed_size: Size | None, skip_bad_images: bool) -> ImageData:
    """Load an ImageFolder tree; where it has no test/, val/ is the test set.

    Args:
        root: The folder; names of classes are those of the folders in train/.
        img_size: Side in pixels to resize all images to; None keeps their one size.
        mixed_size: Height and width for all images where they are of several sizes and `img_size` is None.
        skip_bad_images: Leave images out that cannot be read, instead of refusing the folder.

    Returns:
        The images.

    Raises:
        UserError: The folder has another layout, a class without images, or images that cannot be read.
    """
    names, classes = folder_layout(root)
    read = read_splits(
        {name: [(Path(file), label) for file, label in class_files(root / name, classes)] for name in names},
        source=str(root),
        classes=classes,
        img_size=img_size,
        mixed_size=mixed_size,
        skip_bad_images=skip_bad_images,
    )
    tested_on = names[-1]
    note = f"Folder {root.resolve().name}, tested on {tested_on}/"
    return ImageData(
        name=root.resolve().name,
        note=f"{note}; {read.resizing}" if read.resizing else note,
        classes=classes,
        train=read.splits["train"],
        val=read.splits.get("val") if tested_on == "test" else None,
        test=read.splits[tested_on],
        skipped=read.skipped,
    )


def folder_layout(root: Path) -> tuple[list[str], tuple[str, ...]]:
    """Return the splits of an ImageFolder tree, train first and the tested one last, and the names of its classes.

    Args:
        root: The folder.

    Returns:
        Of "train", "val" and "test" those that are there, and the names of the folders in train/.

    Raises:
        UserError: The folder has another layout.
    """
    found = sorted(child.name for child in root.iterdir() if child.is_dir())
    names: list[str] = [name for name in ("train", "val", "test") if name in found]
    if len(names) < 2 or names[0] != "train":
        raise UserError(f"{root} has {', '.join(found) or 'no folders'}: train/ and test/ (or val/) are needed.")
    classes = tuple(_class_names(root / "train"))
    if not classes:
        raise UserError(f"{root / 'train'} has no class folders: put each class's images into a folder of its own.")
    return names, classes


def class_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """Return the image files of a split and their labels, in the order of the classes.

    Args:
        folder: The split, with a folder a class.
        classes: Names of the classes, by label.

    Returns:
        Paths and labels; no file was opened.

    Raises:
        UserError: A class is missing, without images, or not one of `classes`.
    """
    extra = [name for name in _class_names(folder) if name not in classes]
    if extra:
        raise UserError(f"{folder / extra[0]} is a class that train/ does not have{nearest(extra[0], classes)}.")
    found: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        files = image_names_below(folder / name) if (folder / name).is_dir() else []
        if not files:
            raise UserError(f"{folder / name} holds no images ({', '.join(SUFFIXES)}): add some or remove the class.")
        found += [(file, label) for file in files]
    return found


def _class_names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
