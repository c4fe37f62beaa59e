"""Labelled images from the digits of scikit-learn, an ImageFolder tree or an .npz with MedMNIST keys."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpvg.errors import UserError, nearest

BUILT_IN = ("digits",)
_LARGEST = 4096  # pixels a side
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C) as uint8 and labels (N,) as int64."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.int64]) -> Split:
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class ImageData:
    """A labelled set: splits of one image size; `val` is None where the source has none."""

    name: str
    note: str
    classes: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split

    @property
    def image_size(self) -> tuple[int, int]:
        return self.train.images.shape[1], self.train.images.shape[2]

    @property
    def channels(self) -> int:
        return self.train.images.shape[3]


def load_data(source: str, *, img_size: int | None = None) -> ImageData:
    """Load a labelled set into memory.

    Args:
        source: "digits", a folder with train/ and test/ (and maybe val/) of one folder a class, or an .npz file with
            {train,val,test}_{images,labels}.
        img_size: Side in pixels to resize all images to; None keeps the size that they have.

    Returns:
        Images as uint8 with their labels and class names.

    Raises:
        UserError: The source does not exist, has another layout, or its images differ in size.
    """
    _check_size(img_size)
    if source in BUILT_IN:
        data = _digits()
    elif (kind := _kind(source)) == "folder":
        return _folder(Path(source), img_size)
    elif kind == "file":
        data = _npz(Path(source))
    else:
        raise UserError(
            f"--data {source[:200]!r} is no path that exists and not built in{nearest(source, BUILT_IN)}: use a folder "
            f"with train/ and test/, an .npz file or {', '.join(BUILT_IN)}."
        )
    if img_size is None or data.image_size == (img_size, img_size):
        return data
    return replace(
        data,
        train=_resize(data.train, img_size),
        val=None if data.val is None else _resize(data.val, img_size),
        test=_resize(data.test, img_size),
    )


def _kind(source: str) -> str:
    try:
        return "folder" if Path(source).is_dir() else "file" if Path(source).is_file() else ""
    except (OSError, ValueError):  # too long, or not a path at all
        return ""


def _check_size(img_size: int | None) -> None:
    if img_size is not None and img_size > _LARGEST:
        raise UserError(f"--img-size {img_size} is too large: images are held in memory, use at most {_LARGEST}.")


def _check_count(data: ImageData) -> ImageData:
    if data.val is None and len(data.train) < 5:
        raise UserError(
            f"{data.name} has {len(data.train)} training images and no val split: give 5 or more, or a val."
        )
    return data


def split_validation(data: ImageData, *, fraction: float, seed: int) -> tuple[Split, Split]:
    """Return the training and validation splits; where the source has none, a stratified part of train by `seed`."""
    if data.val is not None:
        return data.train, data.val
    from sklearn.model_selection import train_test_split

    rare = min(Counter(data.train.labels.tolist()).values())
    stratify = data.train.labels if rare >= 2 and int(fraction * len(data.train)) >= len(data.classes) else None
    train, val = train_test_split(np.arange(len(data.train)), test_size=fraction, random_state=seed, stratify=stratify)
    return data.train.take(np.sort(train)), data.train.take(np.sort(val))


def _digits() -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    everything = Split(images, digits.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(everything)), test_size=0.2, random_state=0, stratify=digits.target)
    return ImageData(
        name="digits",
        note="Handwritten digits scanned at 8 x 8 pixels, from scikit-learn; a fixed stratified fifth is the test set.",
        classes=tuple(str(name) for name in digits.target_names),
        train=everything.take(np.sort(train)),
        val=None,
        test=everything.take(np.sort(test)),
    )


def _npz(path: Path) -> ImageData:
    wanted = ["train_images", "train_labels", "test_images", "test_labels"]
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise UserError(f"{path} holds one array: an .npz with {', '.join(wanted)} is needed.")
        with loaded as archive:
            missing = [key for key in wanted if key not in archive.files]
            if missing:
                raise UserError(f"{path} lacks {', '.join(missing)}: it has {', '.join(archive.files) or 'nothing'}.")
            has_val = {"val_images", "val_labels"} <= set(archive.files)
            names = ("train", "val", "test") if has_val else ("train", "test")
            splits = {name: _npz_split(archive, name, path) for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as .npz without unpickling ({error}): save plain arrays.") from error
    shapes = {name: split.images.shape[1:] for name, split in splits.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"{path}: the splits differ in image shape, {shapes}.")
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
    data = ImageData(
        name=path.name,
        note=f"From {path.name}"
        + ("." if has_val else "; it has no validation split, so one is taken from train by seed."),
        classes=tuple(str(label) for label in range(len(known))),
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
    )
    return _check_count(data)


def _npz_split(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> Split:
    images, labels = archive[f"{name}_images"], archive[f"{name}_labels"]
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
    if labels.min() < 0 or labels.max() > 999_999:
        raise UserError(f"{path}: {name}_labels has {labels.min()} to {labels.max()}: labels count the classes from 0.")
    if 0 in images.shape:
        raise UserError(f"{path}: {name}_images is {images.shape}, without a pixel.")
    return Split(images.reshape(*images.shape[:3], -1), labels[:, 0].astype(np.int64))


def _folder(root: Path, img_size: int | None) -> ImageData:
    names = {split.name: split for split in root.iterdir() if split.is_dir()}
    if "train" not in names or not {"test", "val"} & set(names):
        raise UserError(
            f"{root} has {', '.join(sorted(names)) or 'no folders'}: train/ and test/ (or val/) are needed."
        )
    classes = tuple(sorted(folder.name for folder in _class_folders(names["train"])))
    if not classes:
        raise UserError(f"{root / 'train'} has no class folders: put each class's images into a folder of its own.")
    test_name = "test" if "test" in names else "val"
    files = {name: _class_files(names[name], classes) for name in {"train", test_name, "val"} & set(names)}
    headers = [_header(path) for split in files.values() for path, _ in split]
    size = (img_size, img_size) if img_size else _common_size(root, [size for size, _ in headers])
    grey = all(mode in ("1", "L", "LA") or mode.startswith("I") for _, mode in headers)
    splits = {name: _read_split(split, size, grey) for name, split in files.items()}
    with_val = "val" in splits and test_name == "test"
    data = ImageData(
        name=root.name,
        note=f"Folder {root.name}, tested on {test_name}/"
        + ("." if with_val else "; validation images are taken from train/ by seed."),
        classes=classes,
        train=splits["train"],
        val=splits["val"] if with_val else None,
        test=splits[test_name],
    )
    return _check_count(data)


def _class_folders(folder: Path) -> list[Path]:
    return [child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]


def _class_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    extra = sorted(child.name for child in _class_folders(folder) if child.name not in classes)
    if extra:
        raise UserError(f"{folder / extra[0]} is a class that train/ does not have{nearest(extra[0], classes)}.")
    found: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        paths = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not paths:
            raise UserError(
                f"{folder / name} holds no images ({', '.join(sorted(_SUFFIXES))}): add some or remove the class."
            )
        found += [(path, label) for path in paths]
    return found


def _header(path: Path) -> tuple[tuple[int, int], str]:
    with _open(path) as image:
        return image.size, image.mode


def _common_size(root: Path, found: list[tuple[int, int]]) -> tuple[int, int]:
    sizes = Counter(found)
    if len(sizes) > 1:
        (width, height), _ = sizes.most_common(1)[0]
        raise UserError(
            f"{root}: images of {len(sizes)} sizes (mostly {width} x {height}): name one side for all with --img-size."
        )
    width, height = next(iter(sizes))
    return height, width


def _open(path: Path):  # type: ignore[no-untyped-def]  # Pillow is needed here only
    from PIL import Image

    try:
        return Image.open(path)
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): repair or remove it.") from error


def _pixels(path: Path, grey: bool):  # type: ignore[no-untyped-def]
    """Return a Pillow image of 8 bits, grey or RGB."""
    from PIL import Image

    image = _open(path)
    try:
        if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's own conversion would cut off at 255
            image = Image.fromarray(np.round(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
        elif image.mode == "F":
            raise UserError(f"{path} has floating-point pixels: save it with 8 or 16 bits.")
        elif image.mode == "P":
            image = image.convert("RGBA")
        return image.convert("L" if grey else "RGB")
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}): repair or remove it.") from error


def _read_split(files: list[tuple[Path, int]], size: tuple[int, int], grey: bool) -> Split:
    from PIL import Image

    images = np.empty((len(files), *size, 1 if grey else 3), np.uint8)
    for row, (path, _) in enumerate(files):
        image = _pixels(path, grey)
        if image.size != (size[1], size[0]):
            image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        images[row] = np.asarray(image).reshape(*size, -1)
    return Split(images, np.array([label for _, label in files], np.int64))


def _resize(split: Split, side: int) -> Split:
    from PIL import Image

    channels = split.images.shape[3]
    resized = np.empty((len(split), side, side, channels), np.uint8)
    for row, image in enumerate(split.images):
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        resized[row] = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)).reshape(side, side, channels)
    return Split(resized, split.labels)
