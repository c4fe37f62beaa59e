"""Sets in numbered files: which split a file belongs to, which are missing, and what the classes are called."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mpvg.data.large.split import LargeData, LargeSplit, Rows
from mpvg.errors import UserError

SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# A hash may follow, as older versions of `datasets` wrote it: train-00000-of-00002-0123456789abcdef.parquet
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)(?:-of-(?P<count>\d+))?(?:-[0-9a-f]{16})?(?P<suffix>\.\w+)")
_NAMED_MOST = 5  # missing files that an error names


def shards_below(root: Path, suffix: str) -> dict[str, list[Path]]:
    """Return the shards of each split that lie in a folder or in folders in it; see `by_split`."""
    inner = [str(path.relative_to(root)) for path in root.rglob(f"*{suffix}")]
    return {name: [root / path for path in paths] for name, paths in by_split(inner, str(root)).items()}


def by_split(names: Iterable[str], root: str) -> dict[str, list[str]]:
    """Return the files of each split: those whose own name, or else a folder's that they are in, has it as a word.

    Args:
        names: Paths below the root; what is hidden is left out.
        root: What to call it in errors.

    Returns:
        Paths by "train", "val" and "test", sorted; empty where no name tells a split.

    Raises:
        UserError: A file of a numbered sequence is missing, or a split lies in several folders.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        parts = Path(name).parts
        if not any(part.startswith(".") for part in parts):
            found[next((word for word in map(split_word, reversed(parts)) if word), "")].append(name)
    found.pop("", None)
    for split, paths in found.items():
        folders = sorted({str(Path(path).parent) for path in paths})
        if len(folders) > 1:
            raise UserError(f"{root} has shards of {split} in {' and '.join(folders[:3])}: name the folder of one set.")
        refuse_gaps(paths, root)
    return dict(found)


def split_word(name: str) -> str:
    """Return "train", "val" or "test" where a file's or a folder's name has such a word, otherwise ""."""
    return next((SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS), "")


def refuse_gaps(names: Iterable[str], root: str) -> None:
    """Raise a UserError that names the missing files of numbered sequences, which count from 0 or 1.

    Args:
        names: Files; NAME-00001-of-00004.parquet says how many there are, of train-000123.tar gaps are seen.
        root: What they are in, for the error.
    """
    sequences: dict[tuple[str, str, str], dict[int, int]] = defaultdict(dict)
    for name in names:
        if match := _NUMBERED.fullmatch(Path(name).name):
            kind = match["stem"], match["count"] or "", match["suffix"]
            sequences[kind][int(match["number"])] = len(match["number"])
    for (stem, count, suffix), numbers in sequences.items():
        width = min(numbers.values())
        if not count and len(numbers) == 1 and width == len(str(*numbers)):
            continue  # such as train2012.tar
        first = int(min(numbers) > 0 and (not count or int(count) in numbers))
        last = first + int(count) - 1 if count else max(numbers)
        of = f"-of-{count}" if count else ""
        missing = [
            f"{stem}{number:0{width}d}{of}{suffix}" for number in range(first, last + 1) if number not in numbers
        ]
        if missing:
            named = ", ".join(missing[:_NAMED_MOST]) + (", ..." if len(missing) > _NAMED_MOST else "")
            raise UserError(
                f"{root} lacks {len(missing)} of {last - first + 1} shards, {named}: fetch them again, "
                "or number the others without gaps."
            )


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern with {000..123} stands for, as a shell does; several braces multiply."""
    pieces = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    choices = [
        [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
        for low, high in zip(pieces[1::3], pieces[2::3], strict=True)
    ]
    return [
        "".join(itertools.chain.from_iterable(itertools.zip_longest(pieces[::3], chosen, fillvalue="")))
        for chosen in itertools.product(*choices)
    ]


def classes_beside(root: Path) -> tuple[str, ...] | None:
    """Return the lines of a folder's classes.txt, which name its classes by label; None where there is no such file."""
    path = root / "classes.txt"
    if not path.is_file():
        return None
    try:
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text ({error}): write the name of a class on each line.") from error


def check_labels(labels: Rows, what: str, classes: int | None) -> None:
    """Raise a UserError where a label is below 0, or no class has it.

    Args:
        labels: Labels (N,).
        what: The split in words.
        classes: How many classes are known by name; None for any.
    """
    for label in (int(labels.min()), int(labels.max())):
        if label < 0 or (classes is not None and label >= classes):
            known = "labels count the classes from 0" if classes is None else f"there are {classes} classes from 0"
            raise UserError(f"{what} has the label {label}: {known}.")


def labelled(
    splits: dict[str, LargeSplit], *, root: str, name: str, what: str, classes: Sequence[str] | None
) -> LargeData:
    """Return the set of some splits, whose labels are checked; test images that are all labelled -1 are left aside.

    Args:
        splits: By "train", "val" and "test".
        root: What to call the set in errors.
        name: What to call it elsewhere.
        what: Its container in words.
        classes: Names of the classes; None numbers them.

    Raises:
        UserError: A split is missing, or labels are none of the classes.
    """
    note = ""
    test = splits.get("test")
    if test is not None and "val" in splits and test.labels is not None and (test.labels == -1).all():
        splits = {key: split for key, split in splits.items() if key != "test"}
        note = "; the images of test have no labels"
    if "train" not in splits or len(splits) < 2:
        raise UserError(
            f"{root} has {', '.join(splits) or 'no split'}: shards of train and of test (or val) are needed."
        )
    for key, split in splits.items():
        if split.labels is not None:
            check_labels(split.labels, f"{root}: {key}", None if classes is None else len(classes))
    train = splits["train"]
    if classes is None:
        assert train.labels is not None
        classes = [str(label) for label in range(int(train.labels.max()) + 1)]
    if train.labels is not None:
        counts = np.bincount(train.labels, minlength=len(classes))
        for key, split in splits.items():
            unknown = [] if split.labels is None else np.setdiff1d(split.labels, train.labels).tolist()
            if unknown:
                raise UserError(f"{root}: {key} has the class {unknown[0]}, of which train has no image.")
        if counts.min() == 0:
            empty = int(counts.argmin())
            raise UserError(f"{root}: train has no image of class {empty} ({classes[empty]!r}): add some.")
    tested_on = "test" if "test" in splits else "val"
    return LargeData(
        name=name,
        note=f"{name}, {what}, tested on {tested_on}{note}.",
        classes=tuple(classes),
        train=train,
        val=splits.get("val") if tested_on == "test" else None,
        test=splits[tested_on],
    )
