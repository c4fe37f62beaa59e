"""Parquet files, on disk or on a server, read by row groups.

`datasets` would first copy the whole set into a cache of its own, as large again. Row groups are read as they lie
instead, and the order of an epoch stays within some of them: see `epoch_order` and `StreamOrder`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mpvg.data.images import error_in_words, read_picture
from mpvg.data.large.columns import Columns, features_of, find_columns, image_bytes, needed
from mpvg.data.large.shards import check_labels, classes_beside, labelled, shards_below
from mpvg.data.large.split import LargeData, LargeSplit, Rows
from mpvg.errors import UserError

_CACHE = 256 * 2**20  # bytes of row groups that each process keeps
_LARGEST_GROUP = 2**30  # bytes of one
_READERS = 8  # footers that are read at a time

Opener = Callable[[str], Any]  # from a path to a file object


def open_parquet(root: Path, *, streaming: bool, skip_bad_images: bool) -> LargeData | None:
    """Open a folder of Parquet files with a column of encoded images and one of labels.

    Args:
        root: The folder; a file belongs to the split that its name, or its folder's name, has as a word.
        streaming: Read each row group once an epoch, in an order that depends on the number of readers.
        skip_bad_images: What the splits do with images that cannot be read.

    Returns:
        The set; None where the folder has no Parquet files.

    Raises:
        UserError: Files are missing or damaged, or columns or labels are not as needed.
    """
    paths = shards_below(root, ".parquet")
    if not paths:
        return None
    splits = {
        name: ParquetSplit(
            [str(path) for path in found], open_file=_open_local, streaming=streaming, skip_bad_images=skip_bad_images
        )
        for name, found in paths.items()
    }
    what = f"{sum(map(len, paths.values()))} Parquet files{', streamed' if streaming else ''}"
    return parquet_set(splits, root=str(root), name=root.resolve().name, what=what, classes=classes_beside(root))


def parquet_set(
    splits: dict[str, ParquetSplit], *, root: str, name: str, what: str, classes: tuple[str, ...] | None
) -> LargeData:
    """Return the set of some splits, its classes named by the files themselves or by `classes`."""
    first = next(iter(splits.values()))
    data = labelled({**splits}, root=root, name=name, what=what, classes=first.columns.classes or classes)
    for split in splits.values():
        split.classes = len(data.classes)
    return data


class ParquetSplit(LargeSplit):
    """Images of Parquet files.

    Args:
        paths: The files.
        open_file: Opens one, in whichever process needs it.
        streaming: Each row group is best read once.
        skip_bad_images: What to do with images that cannot be read.
        read_labels: Read all labels now; otherwise only as images are read.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        open_file: Opener,
        streaming: bool,
        skip_bad_images: bool,
        read_labels: bool = True,
    ) -> None:
        self._paths, self._open = list(paths), open_file
        with ThreadPoolExecutor(_READERS) as pool:
            self._footers = list(pool.map(self._footer, self._paths))
        self.columns = self._checked_columns()
        self.classes: int | None = None
        places = [(file, group) for file, footer in enumerate(self._footers) for group in range(footer.num_row_groups)]
        self._places = np.array(places, np.int64).reshape(-1, 2)
        groups = np.array([self._footers[file].row_group(group).num_rows for file, group in places], np.int64)
        if groups.sum() == 0:
            raise UserError(f"{self._paths[0]} and the files beside it have no rows: write the images into them.")
        self._ends: Rows = np.cumsum(groups)
        self._held: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        rows = np.array([footer.num_rows for footer in self._footers])
        self._starts: Rows = np.cumsum(rows) - rows  # of the files
        labels = np.concatenate(list(map(self._labels, self._paths, self._footers))) if read_labels else None
        super().__init__(
            count=int(groups.sum()), labels=labels, groups=groups, streamed=streaming, skip_bad_images=skip_bad_images
        )

    def read(self, index: int) -> Image.Image:
        group, row = self._place(index)
        where = self.where(index)
        return read_picture(Path(where), image_bytes(self._group(group)[0][row].as_py(), where))

    def label(self, index: int) -> int:
        if self.labels is not None:
            return int(self.labels[index])
        group, row = self._place(index)
        value = self._group(group)[1][row].as_py()
        label = np.array([-1 if value is None else int(value)])
        check_labels(label, self.where(index), self.classes)
        return int(label[0])

    def where(self, index: int) -> str:
        file = int(self._places[self._place(index)[0], 0])
        return f"{self._paths[file]}: row {index - int(self._starts[file])}"

    def parts(self) -> list[str]:
        sizes = [
            sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
            for footer in self._footers
        ]
        return [f"{Path(path).name} {size}" for path, size in zip(self._paths, sizes, strict=True)]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_held": OrderedDict()}

    def _place(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        return group, index - int(self._ends[group] - self.groups[group])  # type: ignore[index]

    def _group(self, group: int) -> tuple[Any, Any]:
        """Return images and labels of a row group; those that were used last are kept."""
        if group not in self._held:
            file, number = self._places[group].tolist()
            table = self._read(self._paths[file], self._footers[file], [number], self.columns[:2])
            self._held[group] = tuple(table.column(name).combine_chunks() for name in self.columns[:2])
            while len(self._held) > 1 and sum(images.nbytes for images, _ in self._held.values()) > _CACHE:
                self._held.popitem(last=False)
        self._held.move_to_end(group)
        return self._held[group]

    def _footer(self, path: str) -> Any:
        parquet = needed("pyarrow.parquet")
        with _damage_told(path), self._open(path) as file:
            footer = parquet.ParquetFile(file).metadata
        for group in range(footer.num_row_groups):
            size = footer.row_group(group).total_byte_size
            if size > _LARGEST_GROUP:
                raise UserError(
                    f"{path} has a row group of {size / 2**30:.1f} GiB, which is read as one: write it again with "
                    "row_group_size=100."
                )
        return footer

    def _labels(self, path: str, footer: Any) -> Rows:
        column = self._read(path, footer, range(footer.num_row_groups), [self.columns.label]).column(0)
        if column.null_count:
            raise UserError(f"{path} has {column.null_count} rows without {self.columns.label}: fill them in.")
        labels = column.to_numpy()
        if len(labels) and not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{path}: {self.columns.label} is {column.type}: whole numbers are needed.")
        return labels.astype(np.int64)

    def _read(self, path: str, footer: Any, groups: Sequence[int], columns: Sequence[str]) -> Any:
        # A file is opened anew: processes do not share descriptors. No threads: there are workers for that.
        parquet = needed("pyarrow.parquet")
        with _damage_told(path), self._open(path) as file:
            opened = parquet.ParquetFile(file, metadata=footer, pre_buffer=True)
            return opened.read_row_groups(groups, columns=list(columns), use_threads=False)

    def _checked_columns(self) -> Columns:
        schemas = [footer.schema.to_arrow_schema() for footer in self._footers]
        found = find_columns(schemas[0].names, features_of(schemas[0].metadata), self._paths[0])
        for path, schema in zip(self._paths, schemas, strict=True):
            if not {*found[:2]} <= {*schema.names}:
                raise UserError(
                    f"{path} has the columns {', '.join(schema.names)}, but {self._paths[0]} has {found.image} and "
                    f"{found.label}: give all files of a split the same columns."
                )
        return found


@contextmanager
def _damage_told(path: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = error_in_words(error)[:200]
        raise UserError(f"{path} cannot be read as Parquet ({said}): fetch it again.") from error


def _open_local(path: str) -> Any:
    return needed("pyarrow").OSFile(path, "rb")
