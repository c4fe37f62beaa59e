"""An .npz file with the keys of MedMNIST: {train,val,test}_{images,labels}."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpvg.data.images import error_in_words
from mpvg.data.splits import ImageData, Split
from mpvg.errors import UserError

_NEEDED = ("train_images", "train_labels", "test_images", "test_labels")
_MOST_CLASSES = 1_000_000


def load_npz(path: Path) -> ImageData:
    """Load an .npz file; arrays that would have to be unpickled are refused.

    Args:
        path: The file.

    Returns:
        The images.

    Raises:
        UserError: The file is no .npz, lacks a key, or holds something else than images and labels under it.
    """
    with _archive(path) as archive:
        has_val = not {"val_images", "val_labels"}.isdisjoint(archive.files)
        needed = (*_NEEDED, "val_images", "val_labels") if has_val else _NEEDED
        missing = [key for key in needed if key not in archive.files]
        if missing:
            raise UserError(f"{path} lacks {', '.join(missing)}: it has {', '.join(archive.files) or 'nothing'}.")
        names = ("train", "val", "test") if has_val else ("train", "test")
        splits = {name: _split(archive, name, path) for name in names}
    shapes = {name: split.images.shape[1:] for name, split in splits.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"{path}: the splits differ in image shape, {shapes}.")
    _check_labels(splits, path)
    return ImageData(
        name=path.name,
        note=f"From {path.name}",
        classes=tuple(str(label) for label in range(int(splits["train"].labels.max()) + 1)),
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
    )


def _archive(path: Path) -> np.lib.npyio.NpzFile:
    try:
        loaded = np.load(path, allow_pickle=False)
    except Exception as error:  # on a damaged file, NumPy and zipfile raise nearly anything
        raise _unreadable(str(path), error) from error
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise UserError(f"{path} holds one array: an .npz with {', '.join(_NEEDED)} is needed.")
    return loaded


def _array(archive: np.lib.npyio.NpzFile, key: str, path: Path) -> npt.NDArray[Any]:
    try:
        array = archive[key]
    except Exception as error:  # likewise
        raise _unreadable(f"{path}: {key}", error) from error
    if not isinstance(array, np.ndarray):  # NumPy returns the bytes of what it does not know
        raise UserError(f"{path}: {key} is no array: save one with numpy.savez.")
    return array


def _unreadable(what: str, error: Exception) -> UserError:
    return UserError(f"{what} cannot be read as .npz without unpickling ({error_in_words(error)}): save plain arrays.")


def _split(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> Split:
    images, labels = _array(archive, f"{name}_images", path), _array(archive, f"{name}_labels", path)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise UserError(
            f"{path}: {name}_images is {images.dtype} {images.shape}, not uint8 (N, H, W) or (N, H, W, 1 or 3)."
        )
    labels = labels.reshape(len(labels), -1) if labels.ndim and labels.size else np.empty((0, 1), np.int64)
    if labels.shape[1] != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: {name}_labels is {labels.dtype} {labels.shape}, not one whole number an image.")
    if len(images) != len(labels) or len(images) == 0:
        raise UserError(
            f"{path}: {len(images)} {name}_images and {len(labels)} {name}_labels; as many are needed, not 0."
        )
    if 0 in images.shape:
        raise UserError(f"{path}: {name}_images is {images.shape}, without a pixel.")
    for label in (labels.min(), labels.max()):
        if not 0 <= label < _MOST_CLASSES:
            raise UserError(f"{path}: {name}_labels has {label}: labels count the classes from 0.")
    return Split(images.reshape(*images.shape[:3], -1), labels[:, 0].astype(np.int64))


def _check_labels(splits: dict[str, Split], path: Path) -> None:
    known = set(splits["train"].labels.tolist())
    gap = next((label for label in range(len(known)) if label not in known), None)
    if gap is not None:
        raise UserError(
            f"{path}: train_labels has no image of class {gap}, but of {max(known)}: number the classes without gaps."
        )
    for name, split in splits.items():
        unknown = sorted(set(split.labels.tolist()) - known)
        if unknown:
            raise UserError(f"{path}: {name}_labels has {unknown[0]}, a class of which train_images holds no image.")
