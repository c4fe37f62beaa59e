"""Which ids of masks stand for which classes."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpvg.data.dense.labels import IGNORED
from mpvg.data.dense.split import ClassMap
from mpvg.errors import UserError

_FILES = ("classes.txt", "classes.json")
_LARGEST = 65535  # the ids of 16 bits


class ClassList(NamedTuple):
    """Classes, and the ids that masks write them with.

    Args:
        classes: Names.
        ids: Of each class.
        ignored: Ids of pixels that are neither learned nor measured.
    """

    classes: tuple[str, ...]
    ids: tuple[int, ...]
    ignored: tuple[int, ...]

    def labels(self, ids: npt.NDArray[np.int64], where: str) -> ClassMap:
        """Return the labels of a mask's ids, IGNORED where there is none.

        Args:
            ids: (H, W).
            where: The mask, for the error.

        Raises:
            UserError: An id is not in the list.
        """
        table = np.full(_LARGEST + 1, -1)
        table[list(self.ignored)] = IGNORED
        table[list(self.ids)] = np.arange(len(self.ids))
        known = (ids >= 0) & (ids <= _LARGEST)
        labels = np.where(known, table[np.where(known, ids, 0)], -1)
        if (labels < 0).any():
            unknown = ids[labels < 0]
            raise UserError(
                f"{where} has the id {unknown[0]} at {len(unknown)} pixels, which is no class of the list and not "
                f"ignored: add it to the classes, or name --data.ignored {unknown[0]}."
            )
        return labels.astype(np.uint8)


def class_list(names: Sequence[str], ids: Sequence[int], *, ignored: Collection[int], where: str) -> ClassList:
    """Return a list of classes whose numbers are possible.

    Args:
        names: Of the classes.
        ids: Of the classes.
        ignored: Ids without a class, beside 255 where that is none.
        where: What the classes are from, for errors.

    Raises:
        UserError: Ids are no numbers of 16 bits, twice there, or too many, or a name is twice there.
    """
    if not names:
        raise UserError(f"{where} names no class: write one a line.")
    if len(names) > IGNORED:
        raise UserError(f"{where} names {len(names)} classes: {IGNORED} are possible.")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where} names the class {name!r} twice: give each class a name of its own.")
    for number in (*ids, *ignored):
        if not 0 <= number <= _LARGEST:
            raise UserError(f"{where}: the id {number} is none that a mask can have: use 0 to {_LARGEST}.")
        if ids.count(number) > 1 or (number in ids and number in ignored):
            also = "ignored" if number in ignored else "that of another"
            raise UserError(f"{where}: the id {number} of a class is also {also}: give each class an id of its own.")
    without = (*sorted(ignored), *(() if IGNORED in ids else (IGNORED,)))
    return ClassList(tuple(names), tuple(ids), tuple(dict.fromkeys(without)))


def read_class_list(folder: Path, *, ignored: Collection[int]) -> ClassList:
    """Read classes.txt, a name a line or "id: name", or classes.json, a list of names or {"id": "name"}.

    Args:
        folder: Where it lies; names without ids count from 0.
        ignored: Ids without a class, beside 255.

    Raises:
        UserError: There is no such file, or it is written otherwise.
    """
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no {_FILES[0]}: write one there with the name of a class a line, id 0 first.")
    try:
        text = path.read_text("utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else _lines(text)
    except ValueError as error:  # of JSON, or of UTF-8
        raise UserError(f"{path} cannot be read ({error}): write names of classes.") from error
    names, ids = _named(found, path)
    return class_list(names, ids, ignored=ignored, where=str(path))


def _lines(text: str) -> list[str] | dict[str, str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [line.partition(":") for line in lines]
    if lines and all(number.strip().isdecimal() and name.strip() for number, _, name in pairs):
        if len({number.strip() for number, _, _ in pairs}) < len(pairs):
            raise ValueError("an id is there twice")
        return {number.strip(): name.strip() for number, _, name in pairs}
    return lines


def _named(found: Any, path: Path) -> tuple[list[str], list[int]]:
    if isinstance(found, list) and all(isinstance(name, str) and name for name in found):
        return found, list(range(len(found)))
    if isinstance(found, dict) and all(number.isdecimal() and isinstance(name, str) for number, name in found.items()):
        by_id = sorted((int(number), name) for number, name in found.items())
        return [name for _, name in by_id], [number for number, _ in by_id]
    raise UserError(f'{path} is no list of names, nor names by ids: write ["wall", ...] or {{"0": "wall", ...}}.')
