"""From what a user names to a large set: which of the layouts it is."""

from __future__ import annotations

import os
from pathlib import Path

from mpvg.data.large.folder import open_folder
from mpvg.data.large.hub import PREFIX, open_hub
from mpvg.data.large.parquet import open_parquet
from mpvg.data.large.saved import MARKS, open_saved
from mpvg.data.large.split import LargeData
from mpvg.data.large.tars import open_tars
from mpvg.errors import UserError

_EXPECTED = (
    "train/ and test/ (or val/) with a folder of images a class, Parquet files (train-00000-of-00002.parquet), "
    "WebDataset shards (train-000000.tar), or what datasets' save_to_disk wrote"
)


def open_large(source: str, *, streaming: bool = False, skip_bad_images: bool = False) -> LargeData:
    """Open a labelled set without reading its images.

    Args:
        source: A folder with train/ and test/ (or val/) of one folder a class, with Parquet files, with WebDataset
            shards, or written by save_to_disk; train's WebDataset shards with braces; or hf:OWNER/NAME.
        streaming: Read each row group of Parquet files once an epoch, and those of the Hub without fetching all.
        skip_bad_images: Replace images that cannot be read by the one behind them (training) or leave them out
            (testing), instead of refusing.

    Returns:
        The set; images that were passed over are counted in it as they are met.

    Raises:
        UserError: There is no such source, it has another layout, or parts of it are missing.
    """
    if source.startswith(PREFIX):
        data = open_hub(source, streaming=streaming, skip_bad_images=skip_bad_images)
    else:
        try:
            data = _open_local(os.path.expanduser(source), streaming=streaming, skip_bad_images=skip_bad_images)
        except OSError as error:
            raise UserError(
                f"--data {source[:200]!r} cannot be read ({error}): check the path and its rights."
            ) from error
    if len(data.classes) < 2:
        raise UserError(f"{data.name} has one class, {data.classes[0]!r}: give images of two or more.")
    return data


def _open_local(source: str, *, streaming: bool, skip_bad_images: bool) -> LargeData:
    root = Path(source)
    if streaming:
        data = open_parquet(root, streaming=True, skip_bad_images=skip_bad_images) if root.is_dir() else None
        if data is None:
            raise UserError(
                f"--data {source!r} cannot be streamed: a folder of Parquet files or hf:OWNER/NAME is needed."
            )
        return data
    if "{" in source and not root.exists():
        found = open_tars(source, skip_bad_images=skip_bad_images)
    elif not root.is_dir():
        what = "is a file" if root.is_file() else "is no path that exists"
        raise UserError(f"--data {source[:200]!r} {what}: a folder is needed, with {_EXPECTED}; or hf:OWNER/NAME.")
    elif any((root / mark).is_file() for mark in MARKS):
        found = open_saved(root, skip_bad_images=skip_bad_images)
    elif _has_folders(root / "train"):
        found = open_folder(root, skip_bad_images=skip_bad_images)
    else:
        found = open_parquet(root, streaming=False, skip_bad_images=skip_bad_images) or open_tars(
            source, skip_bad_images=skip_bad_images
        )
    if found is None:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir() if entry.name[0] != ".")
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise UserError(f"{root} has {shown or 'nothing'}: expected are {_EXPECTED}.")
    return found


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() and entry.name[0] != "." for entry in os.scandir(folder))
