"""WebDataset shards, read by an index of what lies where in them: so any image is as near as any other."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mpvg.data.images import SUFFIXES, error_in_words, read_picture
from mpvg.data.large.shards import classes_beside, expand_braces, labelled, refuse_gaps, shards_below, split_word
from mpvg.data.large.split import LargeData, LargeSplit, Rows
from mpvg.data.large.tar_members import BLOCK, tar_members
from mpvg.errors import UserError

_READERS = 8  # shards whose index is read at a time: most of it is waiting for the disk


def open_tars(source: str, *, skip_bad_images: bool) -> LargeData | None:
    """Open WebDataset shards: an image (KEY.jpg, .png, ...) and a label (KEY.cls, or "label" in KEY.json) a sample.

    Args:
        source: A folder, or train's shards with braces, such as DIR/set-train-{0000..1023}.tar: then the other splits
            are those beside them.
        skip_bad_images: What the splits do with images that cannot be read.

    Returns:
        The set, its classes named by classes.txt beside the shards or numbered; None where a folder has no shards.

    Raises:
        UserError: Shards are missing or cut off, or samples without an image or a label.
    """
    root = Path(source)
    if "{" in source:
        train = [Path(name) for name in expand_braces(source)]
        root = train[0].parent
        missing = [path.name for path in train if not path.is_file()]
        if missing:
            raise UserError(
                f"{root} lacks {len(missing)} of {len(train)} shards, {', '.join(missing[:5])}: fetch them."
            )
        beside = sorted(path for path in root.glob("*.tar") if split_word(path.name) in ("val", "test"))
        paths = {"train": train}
        for path in beside:
            paths.setdefault(split_word(path.name), []).append(path)
        for name in {*paths} - {"train"}:
            refuse_gaps([path.name for path in paths[name]], str(root))
    else:
        paths = shards_below(root, ".tar")
    if not paths:
        return None
    splits: dict[str, LargeSplit] = {
        name: _TarSplit(found, skip_bad_images=skip_bad_images) for name, found in paths.items()
    }
    what = f"{sum(map(len, paths.values()))} WebDataset shards"
    return labelled(splits, root=source, name=root.resolve().name, what=what, classes=classes_beside(root))


class _Index(NamedTuple):
    """Of each sample of a shard: where its image begins, its bytes, and its label."""

    offsets: list[int]
    sizes: list[int]
    labels: list[int]


class _TarSplit(LargeSplit):
    def __init__(self, paths: Sequence[Path], *, skip_bad_images: bool) -> None:
        with ThreadPoolExecutor(_READERS) as pool:
            found = list(pool.map(_index, paths))
        groups = np.array([len(index.labels) for index in found], np.int64)
        labels = np.array([label for index in found for label in index.labels], np.int64)
        super().__init__(count=len(labels), labels=labels, groups=groups, skip_bad_images=skip_bad_images)
        self._paths = [str(path) for path in paths]
        self._offsets = np.array([offset for index in found for offset in index.offsets], np.int64)
        self._sizes = np.array([size for index in found for size in index.sizes], np.int64)
        self._ends: Rows = np.cumsum(groups)
        self._opened: tuple[int, int, int] | None = None  # process, shard and its descriptor

    def read(self, index: int) -> Image.Image:
        offset, size = int(self._offsets[index]), int(self._sizes[index])
        return read_picture(Path(self.where(index)), os.pread(self._file(self._shard(index)), size, offset))

    def where(self, index: int) -> str:
        """Return the shard and the member, whose name the block before its bytes has."""
        shard = self._shard(index)
        header = os.pread(self._file(shard), BLOCK, int(self._offsets[index]) - BLOCK)
        try:
            name = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except tarfile.HeaderError:  # the shard was changed since
            name = f"image {index - int(self._ends[shard]) + int(self.groups[shard])}"  # type: ignore[index]
        return f"{self._paths[shard]}: {name}"

    def parts(self) -> list[str]:
        return [f"{os.path.basename(path)} {os.stat(path).st_size}" for path in self._paths]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _file(self, shard: int) -> int:
        """Return the descriptor of a shard, one at a time; that of a parent process is left to it."""
        if self._opened is None or self._opened[:2] != (os.getpid(), shard):
            if self._opened is not None and self._opened[0] == os.getpid():
                os.close(self._opened[2])
            self._opened = None
            self._opened = os.getpid(), shard, os.open(self._paths[shard], os.O_RDONLY)
        return self._opened[2]


def _index(path: Path) -> _Index:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for member, offset, size in tar_members(descriptor):
            folder, _, name = member.rpartition("/")
            key, dot, suffix = name.partition(".")  # as WebDataset does: all behind the first point
            key, suffix = f"{folder}/{key}", (dot + suffix).lower()
            if not key.endswith("/"):  # not hidden
                if suffix in SUFFIXES:
                    images[key] = offset, size
                elif suffix == ".cls" or (suffix == ".json" and key not in labels):
                    label = _label(os.pread(descriptor, size, offset), suffix, path, member)
                    if label is not None:
                        labels[key] = label
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} is cut off or no tar file ({error_in_words(error)}): fetch it again.") from error
    finally:
        os.close(descriptor)
    if not images:
        raise UserError(f"{path} holds no images ({', '.join(SUFFIXES)}): samples of KEY.jpg and KEY.cls are needed.")
    lacking = next((key.strip("/") for key in images if key not in labels), None)
    if lacking is not None:
        raise UserError(f'{path}: {lacking} has no label: {lacking}.cls, or "label" in {lacking}.json, is needed.')
    offsets, sizes = (list(numbers) for numbers in zip(*images.values(), strict=True))
    return _Index(offsets, sizes, [labels[key] for key in images])


def _label(content: bytes, suffix: str, path: Path, member: str) -> int | None:
    try:
        if suffix == ".cls":
            return int(content)
        found = json.loads(content)
        return int(found["label"]) if isinstance(found, dict) and "label" in found else None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: {member} is no whole number ({error_in_words(error)[:100]}): label by class."
        ) from error
