"""torchvision's sets for classification, read from where they lie on disk; nothing is ever downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from mpvg.data.images import Size, empty_images, error_in_words, resizing_in_words, to_pixels
from mpvg.data.labelled import FileSplits, LabelledFiles, read_splits
from mpvg.data.splits import ImageData, Split
from mpvg.errors import UserError

_USUAL_ROOTS = (Path("."), Path("data"))


@dataclass(frozen=True)
class NamedSet:
    """How torchvision is asked for the splits of a set.

    Args:
        splits: Keywords of its constructor for "train", "test" and, where there is one, "val".
        files: Its attribute with the paths of images that it opens one by one; "" where it holds all in memory.
    """

    splits: dict[str, dict[str, Any]]
    files: str = ""


def _flag(**also: Any) -> NamedSet:
    return NamedSet({"train": {**also, "train": True}, "test": {**also, "train": False}})


def _split(train: str, test: str, val: str | None = None, *, files: str = "") -> NamedSet:
    names = {"train": train, "test": test} if val is None else {"train": train, "val": val, "test": test}
    return NamedSet({name: {"split": split} for name, split in names.items()}, files)


NAMED = {
    "MNIST": _flag(),
    "FashionMNIST": _flag(),
    "KMNIST": _flag(),
    "QMNIST": _flag(),
    "EMNIST": _flag(split="balanced"),
    "USPS": _flag(),
    "CIFAR10": _flag(),
    "CIFAR100": _flag(),
    "SVHN": _split("train", "test"),
    "STL10": _split("train", "test"),
    "PCAM": _split("train", "test", "val"),
    "GTSRB": _split("train", "test", files="_samples"),
    "Food101": _split("train", "test", files="_image_files"),
    "Flowers102": _split("train", "test", "val", files="_image_files"),
    "OxfordIIITPet": _split("trainval", "test", files="_images"),
    "DTD": _split("train", "test", "val", files="_image_files"),
    "FGVCAircraft": _split("train", "test", "val", files="_image_files"),
    "Imagenette": _split("train", "val", files="_samples"),  # it has no other split to test on
    "RenderedSST2": _split("train", "test", "val", files="_samples"),
}
_RECOGNISED = {
    **{name: f"{name}/raw" for name in ("MNIST", "FashionMNIST", "KMNIST", "QMNIST")},
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
}


def parse_named(source: str) -> tuple[str, tuple[Path, ...]] | None:
    """Take NAME or NAME:FOLDER apart, where NAME is known in upper or lower case.

    Args:
        source: What the user gave.

    Returns:
        The set's name and the folders to look for it in; None where the source is no such thing.
    """
    name, _, folder = source.partition(":")
    known = {known.lower(): known for known in NAMED}.get(name.lower())
    if known is None:
        return None
    return known, (Path(os.path.expanduser(folder)),) if folder else _USUAL_ROOTS


def recognised_in(folder: Path) -> str | None:
    """Return the name of the one set that a folder holds as torchvision lays it out, if any.

    Args:
        folder: What torchvision calls the set's root.

    Returns:
        The name, or None.

    Raises:
        UserError: The folder holds several.
    """
    found = [name for name, part in _RECOGNISED.items() if (folder / part).is_dir()]
    if len(found) > 1:
        raise UserError(f"{folder} holds {' and '.join(found)}: name one, as in --data {found[0]}:{folder}.")
    return found[0] if found else None


def load_named(
    name: str, roots: Sequence[Path], *, img_size: int | None, mixed_size: Size | None, skip_bad_images: bool
) -> ImageData:
    """Load one of torchvision's sets from the first folder that holds it.

    Args:
        name: A key of NAMED.
        roots: Folders to look in, as torchvision's `root`.
        img_size: Side in pixels to resize all images to; None keeps their one size.
        mixed_size: Height and width for all images where they are of several sizes and `img_size` is None.
        skip_bad_images: Leave image files out that cannot be read, instead of refusing the set.

    Returns:
        The images.

    Raises:
        UserError: No folder holds it, or its files are damaged.
    """
    root, opened = _open(name, roots)
    source = f"{name} in {root}"
    if NAMED[name].files:
        files = {split: _files(dataset, NAMED[name].files) for split, dataset in opened.items()}
        classes = _classes(opened["train"], [label for _, label in files["train"]])
        read = read_splits(
            files,
            source=source,
            classes=classes,
            img_size=img_size,
            mixed_size=mixed_size,
            skip_bad_images=skip_bad_images,
        )
    else:
        read = _from_memory(opened, source, img_size)
        classes = _classes(opened["train"], read.splits["train"].labels.tolist())
    for split, part in read.splits.items():
        _check_labels(part, len(classes), f"{source}: {split}")
    asked = ", ".join(f"{split} is {_words(NAMED[name].splits[split])}" for split in opened)
    note = f"{name} as torchvision reads it: {asked}"
    return ImageData(
        name=name,
        note=f"{note}; {read.resizing}" if read.resizing else note,
        classes=classes,
        train=read.splits["train"],
        val=read.splits.get("val"),
        test=read.splits["test"],
        skipped=read.skipped,
    )


def _open(name: str, roots: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    said = []
    for root in roots:
        opened: dict[str, Any] = {}
        try:
            for split, keywords in NAMED[name].splits.items():
                opened[split] = getattr(datasets, name)(root=str(root), download=False, **keywords)
                if len(opened[split]) == 0:
                    raise ValueError(f"no images with {_words(keywords)}")
            return root, opened
        except Exception as error:  # on missing and damaged files, torchvision raises nearly anything
            failed, reason = error, error_in_words(error)
            said.append(f"{root} ({reason})")
    call = f"{name}({str(roots[0])!r}, {_words(keywords)}, download=True)"
    remedy = f'download it there with python -c "from torchvision.datasets import {name}; {call}"'
    if isinstance(failed, ImportError) or "pip install" in reason:
        remedy = "install what it asks for"
    raise UserError(f"torchvision cannot read {name} in {' or '.join(said)}: {remedy}.") from failed


def _words(keywords: dict[str, Any]) -> str:
    return ", ".join(f"{keyword}={value!r}" for keyword, value in keywords.items())


def _files(dataset: Any, attribute: str) -> LabelledFiles:
    """Return paths and labels, for which torchvision has no public name, so that each file is opened by our reader."""
    found = getattr(dataset, attribute)
    pairs = found if attribute == "_samples" else zip(found, dataset._labels, strict=True)
    return [(Path(path), int(label)) for path, label in pairs]


def _classes(dataset: Any, labels: Sequence[int]) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None) or range(max(labels) + 1)
    return tuple(str(name[0] if isinstance(name, tuple) else name) for name in names)  # Imagenette's have synonyms


def _from_memory(opened: dict[str, Any], source: str, img_size: int | None) -> FileSplits:
    """Read sets that torchvision holds in memory: all images of one are of one size."""
    first, _ = next(_examples(opened["train"], source))
    found = first.height, first.width
    size = found if img_size is None else (img_size, img_size)
    channels = 1 if first.mode == "L" else 3
    splits = {}
    for name, dataset in opened.items():
        given = getattr(dataset, "targets", getattr(dataset, "labels", dataset))
        if len(given) != len(dataset):
            raise UserError(f"{source}: {len(dataset)} images and {len(given)} labels in {name}: download it again.")
        images, labels = empty_images(len(dataset), size, channels), np.empty(len(dataset), np.int64)
        for row, (image, label) in enumerate(_examples(dataset, f"{source}: {name}")):
            images[row], labels[row] = to_pixels(image, size=size, channels=channels), label
        splits[name] = Split(images, labels)
    return FileSplits(splits, skipped=(), resizing=resizing_in_words([found], size))


def _examples(dataset: Any, what: str) -> Iterator[tuple[Any, int]]:
    row = 0
    try:
        for row in range(len(dataset)):
            yield dataset[row]
    except Exception as error:  # as where it is opened
        raise UserError(f"{what}: image {row} cannot be read ({error_in_words(error)}): download it again.") from error


def _check_labels(split: Split, classes: int, what: str) -> None:
    unknown = split.labels[(split.labels < 0) | (split.labels >= classes)]
    if len(unknown):
        raise UserError(f"{what} has a label {unknown[0]}, of {classes} classes from 0: download it again.")
    counts = np.bincount(split.labels, minlength=classes)
    if counts.min() == 0:
        raise UserError(f"{what} has no image of class {counts.argmin()}: download it again.")
