"""Labelled sentences from the .tsv files of a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mpvg.data.holdout import checked
from mpvg.data.sequences.embedded import WORDS, words
from mpvg.data.sequences.files import read_lines, refusal, shown
from mpvg.data.sequences.rows import Rows, in_splits
from mpvg.data.sequences.splits import SequenceData
from mpvg.errors import UserError, nearest

_LABEL_WORDS = frozenset({"label", "labels", "class", "category", "target", "sentiment", "polarity"})
_SENTENCE_WORDS = frozenset({"sentence", "sentences", "text", "review", "phrase", "comment", "document", "question"})


def load_text(folder: str) -> SequenceData:
    """Load labelled sentences into memory.

    Args:
        folder: A folder with train.tsv, test.tsv and maybe dev.tsv (or val.tsv), in UTF-8, one `sentence<TAB>label` a
            row, quotes meaning themselves; or "words", a generated set. A first row is a header where it has the usual
            words, or where other files begin with the same and no other row has its label.

    Returns:
        The sentences as they are written, and their labels.

    Raises:
        UserError: The folder lacks a file, or a file holds a row that is no sentence and label.
    """
    if folder == WORDS:
        return checked(words())
    files = _files(folder)
    lines = {split: _without_end(read_lines(path)) for split, path in files.items()}
    headers = _headers(files, lines)
    rows = {split: _rows(path, lines[split], header=headers[split]) for split, path in files.items()}
    classes, splits = in_splits(rows)
    root = files["train"].parent
    return checked(
        SequenceData(
            name=root.resolve().name or str(root),
            note=f"Sentences from {', '.join(path.name for path in files.values())}"
            + "".join(part.note for part in rows.values()),
            classes=classes,
            train=splits["train"],
            val=splits.get("val"),
            test=splits["test"],
        )
    )


def _files(folder: str) -> dict[str, Path]:
    root = Path(os.path.expanduser(folder))
    layout = "a folder with train.tsv, test.tsv and maybe dev.tsv"
    if os.path.isfile(root):
        raise refusal(folder, "this is a file", f"give {layout}")
    if not os.path.isdir(root):
        raise UserError(
            f"--data {folder[:200]!r} is no folder that exists and not built in{nearest(folder, [WORDS])}: "
            f"use {layout}, or {WORDS!r}."
        )
    files = {split: root / f"{split}.tsv" for split in ("train", "test")}
    missing = [path.name for path in files.values() if not os.path.lexists(path)]
    if missing:
        raise refusal(folder, f"this folder lacks {' and '.join(missing)}", f"use {layout}")
    val = [path for path in (root / "dev.tsv", root / "val.tsv") if os.path.lexists(path)]
    if len(val) == 2:
        raise refusal(folder, "this folder has both dev.tsv and val.tsv", "remove one")
    return {"train": files["train"], **({"val": val[0]} if val else {}), "test": files["test"]}


def _without_end(lines: list[str]) -> list[str]:
    """Leave out the blank lines with which a file ends."""
    end = len(lines)
    while end and not lines[end - 1].strip(" "):
        end -= 1
    return lines[:end]


def _headers(files: Mapping[str, Path], lines: Mapping[str, list[str]]) -> dict[str, bool]:
    """Return which first rows are headers; a first row of train that may be one and may not is refused."""
    first = {split: part[0] for split, part in lines.items()}
    others = [line for line in first.values() if line != first["train"]]
    labels = {_label(line) for line in [*others, *(line for part in lines.values() for line in part[1:])]}
    is_odd = _label(first["train"]) not in labels  # and so a header, or the one row of a class
    repeated = is_odd and list(first.values()).count(first["train"]) > 1
    found = {split: _has_usual_words(line) or (repeated and line == first["train"]) for split, line in first.items()}
    if is_odd and not found["train"] and first["train"].count("\t") == 1 and len(lines["train"]) > 1:
        what = f"{shown(_label(first['train']))} is the label of no other row, so that this may be a header"
        raise refusal(files["train"], what, "call its columns sentence and label, or add rows of that class", row=1)
    return found


def _has_usual_words(line: str) -> bool:
    sentence, _, label = line.partition("\t")
    return sentence.strip().casefold() in _SENTENCE_WORDS and label.strip().casefold() in _LABEL_WORDS


def _label(line: str) -> str:
    return line.rpartition("\t")[2].strip()


def _rows(path: Path, lines: list[str], *, header: bool) -> Rows:
    sentences: list[str] = []
    labels: list[str] = []
    for row, line in enumerate(lines[header:], 1):
        cells, at = line.split("\t"), row + header
        if header and line == lines[0]:
            raise refusal(path, f"this is the header again, {shown(line)}", "remove the row", row=row, line=at)
        if len(cells) != 2:
            what = f"{len(cells) - 1} tabs instead of one" if line.strip() else "the row is blank"
            raise refusal(path, what, "write `sentence<TAB>label`", row=row, line=at)
        sentence, label = cells[0], cells[1].strip()
        if not any(letter.isprintable() and not letter.isspace() for letter in sentence):
            raise refusal(path, f"no sentence before the label {shown(label)}", "write one", row=row, line=at)
        if not label:
            raise refusal(path, f"no label after {shown(sentence)}", "write one", row=row, line=at)
        sentences.append(sentence)
        labels.append(label)
    if not labels:
        raise refusal(path, f"no row but the header {shown(lines[0])}", "give one with rows")
    first_line = 1 + header
    numbers = tuple(range(first_line, first_line + len(labels)))
    return Rows(path, tuple(sentences), tuple(labels), numbers, header=lines[0] if header else "")
