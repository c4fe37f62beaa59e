"""Data sets of the Hugging Face Hub, by their Parquet files: fetched first, or streamed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mpvg.data.images import error_in_words
from mpvg.data.large.columns import needed
from mpvg.data.large.parquet import ParquetSplit, open_parquet, parquet_set
from mpvg.data.large.shards import by_split
from mpvg.data.large.split import LargeData
from mpvg.errors import UserError

PREFIX = "hf:"
_CONVERTED = "refs/convert/parquet"  # where the Hub keeps a copy in Parquet of sets in other formats


def open_hub(source: str, *, streaming: bool, skip_bad_images: bool) -> LargeData:
    """Open hf:OWNER/NAME, or hf:OWNER/NAME/FOLDER where it has Parquet files of several sets.

    Args:
        source: The name, with the prefix.
        streaming: Read row groups as they are needed; otherwise all files are fetched first, into the Hub's cache.
        skip_bad_images: What the splits do with images that cannot be read.

    Returns:
        The set; streamed, the labels of train are known only image by image.

    Raises:
        UserError: There is no such set, no network, or no Parquet file in it.
    """
    owner, _, rest = source.removeprefix(PREFIX).partition("/")
    name, _, folder = rest.partition("/")
    if not owner or not name:
        raise UserError(f"--data {source!r}: write hf:OWNER/NAME, as in the address of the data set on the Hub.")
    repo, hub = f"{owner}/{name}", needed("huggingface_hub")
    try:
        revision, files = _parquet_files(hub, repo, folder)
        if not files:
            raise UserError(
                f"--data {source!r} has no Parquet files: use a set of images that the Hub shows in its viewer."
            )
        if not streaming:
            root = hub.snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=files)
            data = open_parquet(Path(root) / folder, streaming=False, skip_bad_images=skip_bad_images)
            if data is None:
                raise _no_splits(source, files)
            return replace(
                data, name=repo, note=f"{repo} of the Hugging Face Hub, {data.note.removeprefix(data.name)[2:]}"
            )
        open_file = _HubFiles(f"datasets/{repo}@{revision}")
        splits = {
            split: ParquetSplit(
                names,
                open_file=open_file,
                streaming=True,
                skip_bad_images=skip_bad_images,
                read_labels=split != "train",  # of the others, it must be known whether they have any
            )
            for split, names in by_split(files, source).items()
        }
    except UserError:
        raise
    except Exception as error:  # no network, no rights, no such set: the library raises nearly anything
        raise UserError(
            f"--data {source!r} cannot be fetched ({error_in_words(error)[:200]}): check the name, the network and, "
            "for sets that ask for it, that you are logged in (hf auth login)."
        ) from error
    if not splits:
        raise _no_splits(source, files)
    if next(iter(splits.values())).columns.classes is None:
        raise UserError(
            f"--data {source!r} does not name its classes, which streaming needs: open it without streaming."
        )
    what = f"{len(files)} Parquet files, streamed from the Hugging Face Hub"
    return parquet_set(splits, root=source, name=repo, what=what, classes=None)


def _no_splits(source: str, files: list[str]) -> UserError:
    return UserError(
        f"--data {source!r} has {', '.join(files[:3])}: files of train and of test (or validation) are needed."
    )


def _parquet_files(hub: Any, repo: str, folder: str) -> tuple[str, list[str]]:
    api = hub.HfApi()
    for revision in ("main", _CONVERTED):
        try:
            found = api.list_repo_files(repo, repo_type="dataset", revision=revision)
        except hub.errors.RevisionNotFoundError:
            continue
        within = f"{folder.rstrip('/')}/" if folder else ""
        files = [name for name in found if name.endswith(".parquet") and name.startswith(within)]
        if files:
            return revision, files
    return "main", []


class _HubFiles:
    """Opens files of a data set on the Hub; each process makes its own connection."""

    def __init__(self, root: str) -> None:
        self._root = root.replace(_CONVERTED, _CONVERTED.replace("/", "%2F"))

    def __call__(self, name: str) -> Any:
        return needed("huggingface_hub").HfFileSystem().open(f"{self._root}/{name}", "rb")
