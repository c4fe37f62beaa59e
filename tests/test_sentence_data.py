"""Labelled sentences from the .tsv files of a folder: headers, rows, and one line for what is refused."""

from __future__ import annotations

import codecs
from pathlib import Path

import numpy as np
import pytest

from mpvg.data.sequences import load_text
from mpvg.errors import UserError

ROWS = ("good film\tpos", "bad film\tneg", "fine\tpos", "dull\tneg", "awful\tneg")


def text_folder(folder: Path, **files: str | bytes) -> str:
    """Write train.tsv and test.tsv of `ROWS`, or what is given for them."""
    for name, content in ({"train": "\n".join(ROWS), "test": "\n".join(ROWS[:2])} | files).items():
        path = folder / f"{name}.tsv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def test_sentences_of_a_folder(tmp_path: Path) -> None:
    rows = 'say "hi" \t10\r\n"unclosed\t9\r\n naïve – ﬁne\x85odd\u2028break\t10\r\n'
    data = load_text(
        text_folder(tmp_path, train=codecs.BOM_UTF8 + rows.encode(), test=rows, dev="x y\t9\nz\t10\n\n \n")
    )
    assert data.train.items == ('say "hi" ', '"unclosed', " naïve – ﬁne\x85odd\u2028break")
    assert data.classes == ("9", "10")
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.train.labels.dtype == np.int64
    assert data.val is not None
    assert (data.val.items, data.val.labels.tolist()) == (("x y", "z"), [0, 1])
    assert (data.name, data.unit, data.channels, data.synthetic) == (tmp_path.name, "sentences", None, False)
    assert data.note == "Sentences from train.tsv, dev.tsv, test.tsv."


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("Sentence\tLABEL\n", True),
        ("words\tkind\n", True),
        ("film\tpos\n", False),
        ("text\tneg\n", False),  # one usual word is no header
        ("", False),
    ],
)
def test_headers_of_sentences(tmp_path: Path, header: str, taken: bool) -> None:
    content = header + "\n".join(ROWS)
    data = load_text(text_folder(tmp_path, train=content, test=content, val="\n".join(ROWS)))
    assert len(data.train) == len(data.test) == 5 + bool(header) - taken
    assert data.val is not None
    assert len(data.val) == 5
    assert data.classes == ("neg", "pos")
    assert data.note.count("the first row of") == 2 * taken
    if taken:
        assert f"the first row of train.tsv was taken for a header ({header.strip()!r})" in data.note


def test_a_label_that_another_first_row_has_is_no_header(tmp_path: Path) -> None:
    data = load_text(text_folder(tmp_path, train="one\trare\n" + "\n".join(ROWS), test="two\trare\nthree\tpos"))
    assert (len(data.train), len(data.test), data.classes) == (6, 2, ("neg", "pos", "rare"))
    assert load_text(text_folder(tmp_path, test="alone\tpos")).test.items == ("alone",)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"test": "strange\t7\n" + "\n".join(ROWS)}, r"test\.tsv, row 1: label '7' is not in train\.tsv"),
        ({"dev": "strange\t7\n" + ROWS[0], "test": "strange\t7\n" + ROWS[0]}, r"dev\.tsv, row 1: label '7'"),
        (
            {"train": "great film\tgreat\n" + "\n".join(ROWS)},
            r"train\.tsv, row 1: 'great' is the label of no other row",
        ),
        ({"train": "text\tlabel\ntext\tlabel\n" + "\n".join(ROWS)}, r"train\.tsv, row 1: this is the header again"),
        ({"train": "\u200b\tpos\n" + "\n".join(ROWS)}, r"train\.tsv, row 1: no sentence before the label 'pos'"),
    ],
)
def test_nothing_is_dropped_for_a_header_that_may_be_none(tmp_path: Path, files: dict[str, str], what: str) -> None:
    with pytest.raises(UserError, match=what):
        load_text(text_folder(tmp_path, **{"train": "\n".join(ROWS), "test": "\n".join(ROWS), **files}))


def test_the_usual_words_are_a_header_even_if_a_class_has_them(tmp_path: Path) -> None:
    data = load_text(text_folder(tmp_path, train="text\tlabel\n" + "\n".join(ROWS) + "\nodd\tlabel"))
    assert data.classes == ("label", "neg", "pos")
    assert len(data.train) == 6
    one_word = load_text(text_folder(tmp_path, train="film\tlabel\n" + "\n".join(ROWS) + "\nodd\tlabel"))
    assert len(one_word.train) == 7


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"train": "a\tx\nb\tx\nc\ty\nno tab\nd\ty"}, r"train\.tsv, row 4: 0 tabs instead of one: write"),
        ({"train": "a\tx\nb\tx\n\nd\ty"}, r"train\.tsv, row 3: the row is blank: write"),
        ({"train": "text\tlabel\na\tx\nb\tc\tx\nd\ty"}, r"train\.tsv, row 2: 2 tabs instead of one \(line 3\): "),
        ({"train": "a\tx\n \tx\nc\ty"}, r"train\.tsv, row 2: no sentence before the label 'x'"),
        ({"train": "a\tx\nb\t \nc\ty"}, r"train\.tsv, row 2: no label after 'b'"),
        ({"train": "a\tx\nb\tx"}, r"train\.tsv: all rows have the label 'x': give two"),
        ({"train": "text\tlabel"}, r"train\.tsv: no row but the header"),
        ({"train": ""}, r"train\.tsv: the file is empty"),
        ({"train": codecs.BOM_UTF8 + b"\n"}, r"train\.tsv: the file is empty"),
        ({"test": "good\tpos\nfilm\tpos\nmeh\tneutral"}, r"test\.tsv, row 3: label 'neutral' is not in train\.tsv, "),
        ({"test": "meh\tneutral"}, r"test\.tsv, row 1: label 'neutral' is not in train\.tsv, "),
        ({"dev": "good\tpos\nfilm\tPos"}, r"dev\.tsv, row 2: label 'Pos' is not in train\.tsv, which has 'neg', 'pos'"),
        ({"train": b"a\tx\nb\ty\ncaf\xe9\tx"}, r"train\.tsv, line 3: byte 0xe9 is not UTF-8: save"),
        ({"train": "a\tx\nb\ty".encode("utf-16-le")}, r"train\.tsv, line 1: a zero byte, as in UTF-16"),
        ({"dev": "a\tpos", "val": "a\tpos"}, "has both dev.tsv and val.tsv: remove one"),
        ({"train": "a\tx\nb\ty\nc\tx"}, r"has 3 training sentences and no val split: give 5 or more"),
    ],
)
def test_sentences_that_are_refused(tmp_path: Path, files: dict[str, str | bytes], what: str) -> None:
    missing = {} if "test" in files or "val" in files or "dev" in files else {"test": "q\tx\nr\tx"}
    with pytest.raises(UserError, match=what) as caught:
        load_text(text_folder(tmp_path, **missing, **files))
    assert "\n" not in str(caught.value)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    folder = text_folder(tmp_path)
    with pytest.raises(UserError, match=r"train\.tsv: this is a file: give a folder with train\.tsv"):
        load_text(f"{folder}/train.tsv")
    with pytest.raises(
        UserError, match=r"'wrods' is no folder that exists and not built in \(did you mean 'words'\?\)"
    ):
        load_text("wrods")
    with pytest.raises(UserError, match="no folder that exists"):
        load_text("x\0y" + "z" * 5000)
    (tmp_path / "test.tsv").unlink()
    with pytest.raises(UserError, match=r"this folder lacks test\.tsv"):
        load_text(folder)
    (tmp_path / "test.tsv").mkdir()
    with pytest.raises(UserError, match=r"test\.tsv: this is a folder"):
        load_text(folder)
