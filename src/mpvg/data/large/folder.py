"""An ImageFolder tree that stays on disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from mpvg.data.folder import class_files, folder_layout
from mpvg.data.images import read_picture
from mpvg.data.large.split import LargeData, LargeSplit


def open_folder(root: Path, *, skip_bad_images: bool) -> LargeData:
    """Open a folder with train/ and test/ (or val/) of one folder a class; no image is opened for it.

    Args:
        root: The folder.
        skip_bad_images: What its splits do with images that cannot be read.

    Returns:
        The set; where it has no test/, val/ is the test split.

    Raises:
        UserError: The folder has another layout, or a class has no images.
    """
    names, classes = folder_layout(root)
    splits = {name: _FolderSplit(root / name, classes, skip_bad_images=skip_bad_images) for name in names}
    tested_on = names[-1]
    return LargeData(
        name=root.resolve().name,
        note=f"Folder {root.resolve().name}, tested on {tested_on}/.",
        classes=classes,
        train=splits["train"],
        val=splits.get("val") if tested_on == "test" else None,
        test=splits[tested_on],
    )


class _FolderSplit(LargeSplit):
    def __init__(self, folder: Path, classes: tuple[str, ...], *, skip_bad_images: bool) -> None:
        files = class_files(folder, classes)
        labels = np.array([label for _, label in files], np.int64)
        super().__init__(count=len(files), labels=labels, skip_bad_images=skip_bad_images)
        self._folder = str(folder)
        # One array: of a list of a million words, each worker would copy the pages, as Python counts references in them
        self._names = np.array([os.fsencode(file[len(self._folder) + 1 :]) for file, _ in files])

    def read(self, index: int) -> Image.Image:
        return read_picture(Path(self.where(index)))

    def where(self, index: int) -> str:
        return os.path.join(self._folder, os.fsdecode(bytes(self._names[index])))

    def parts(self) -> list[str]:
        names = (os.fsdecode(bytes(name)) for name in self._names)
        return [f"{name} {os.stat(os.path.join(self._folder, name)).st_size}" for name in names]
