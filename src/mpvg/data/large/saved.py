"""Sets that `datasets` saved with save_to_disk: Arrow files, which are mapped into memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mpvg.data.images import error_in_words, read_picture
from mpvg.data.large.columns import Columns, find_columns, image_bytes, needed
from mpvg.data.large.shards import classes_beside, labelled, split_word
from mpvg.data.large.split import LargeData, LargeSplit
from mpvg.errors import UserError

MARKS = ("dataset_dict.json", "state.json")  # files that save_to_disk writes


def open_saved(root: Path, *, skip_bad_images: bool) -> LargeData:
    """Open a DatasetDict that was written by save_to_disk.

    Args:
        root: The folder.
        skip_bad_images: What the splits do with images that cannot be read.

    Returns:
        The set.

    Raises:
        UserError: It is damaged, has one split only, or columns or labels are not as needed.
    """
    datasets = needed("datasets")
    try:
        with _quiet(datasets):
            found = datasets.load_from_disk(str(root))
    except Exception as error:  # on damaged files, nearly anything
        raise UserError(f"{root} cannot be read by datasets ({error_in_words(error)[:200]}): save it again.") from error
    if not isinstance(found, datasets.DatasetDict):
        raise UserError(f"{root} is one split, saved alone: save a DatasetDict with train and test (or validation).")
    named = {split_word(name): name for name in reversed(found) if split_word(name)}
    if not named:
        raise UserError(f"{root} has the splits {', '.join(found)}: train and test (or validation) are needed.")
    columns = {
        split: find_columns(found[name].column_names, found[name].features.to_dict(), f"{root}: {name}")
        for split, name in named.items()
    }
    splits: dict[str, LargeSplit] = {
        split: _SavedSplit(found[name], columns[split], f"{root}: {name}", skip_bad_images=skip_bad_images)
        for split, name in named.items()
    }
    classes = next(iter(columns.values())).classes or classes_beside(root)
    what = "a Hugging Face data set on disk"
    return labelled(splits, root=str(root), name=root.resolve().name, what=what, classes=classes)


class _SavedSplit(LargeSplit):
    def __init__(self, dataset: Any, columns: Columns, name: str, *, skip_bad_images: bool) -> None:
        labels = np.asarray(dataset.select_columns([columns.label]).with_format("numpy")[:][columns.label])
        if not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{name}: {columns.label} is {labels.dtype}: whole numbers are needed.")
        super().__init__(count=len(labels), labels=labels.astype(np.int64), skip_bad_images=skip_bad_images)
        # As Arrow: otherwise `datasets` decodes the image in its own way
        self._dataset, self._name = dataset.select_columns([columns.image]).with_format("arrow"), name

    def read(self, index: int) -> Image.Image:
        where = self.where(index)
        return read_picture(Path(where), image_bytes(self._dataset[index].column(0)[0].as_py(), where))

    def where(self, index: int) -> str:
        return f"{self._name} row {index}"

    def parts(self) -> list[str]:
        files = [file["filename"] for file in self._dataset.cache_files]
        return [f"{os.path.basename(file)} {os.stat(file).st_size}" for file in files]


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    was_quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not was_quiet:
            datasets.enable_progress_bars()
