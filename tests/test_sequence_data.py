"""Series: what files may hold, what is refused and how; and what every labelled set has in common."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpvg.data.fingerprint import fingerprint
from mpvg.data.remarks import remarks
from mpvg.data.sequences import SequenceData, Sequences, load_series, load_text
from mpvg.data.sequences.rows import sorted_names
from mpvg.data.sequences.splits import Series
from mpvg.data.sources import held_out, load_data, split_validation
from mpvg.errors import UserError
from test_sentence_data import ROWS, text_folder

HEADER = "@problemName toy\n@timeStamps false\n@univariate true\n@classLabel true a b\n@data\n"
TS = ("1,2,3:a", "4,5,6:b", "7,8:a", "9,10,11:b", "1,1,1:a")


def write(folder: Path, **files: str) -> list[str]:
    """Write files, whose names have "_" for the dot, and return their paths."""
    paths = [folder / name.replace("_", ".") for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_text(content)
    return [str(path) for path in paths]


def ts_files(folder: Path, train: Sequence[str] = TS, test: Sequence[str] = TS, header: str = HEADER) -> list[str]:
    return write(folder, train_ts=header + "\n".join(train), test_ts=header + "\n".join(test) + "\n")


def series(split: Sequences) -> tuple[Series, ...]:
    return cast(tuple[Series, ...], split.items)


def names(data: SequenceData, split: Sequences) -> list[str]:
    return [data.classes[label] for label in split.labels]


def refused(what: str, sources: list[str], *, impute: bool = False) -> None:
    """Expect an error of one line that begins as all of files do."""
    with pytest.raises(UserError, match=what) as caught:
        load_series(sources, impute=impute)
    assert str(caught.value).startswith("--data ")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


# What every labelled set has


def test_splits_hashes_and_remarks_serve_sentences_and_series(tmp_path: Path) -> None:
    text, numbers = load_text(text_folder(tmp_path)), load_series(ts_files(tmp_path))
    for data in (text, numbers):
        train, val = split_validation(data, fraction=0.4, seed=0)
        assert (len(train), len(val)) == (3, 2)
        assert held_out(data, 0.4) == 2
        assert sorted(map(str, (*train.items, *val.items))) == sorted(map(str, data.train.items))
        for part in (train, val):
            for item, label in zip(part.items, part.labels, strict=True):
                row = next(row for row, other in enumerate(data.train.items) if other is item)
                assert data.train.labels[row] == label
    assert remarks(text) == []
    assert remarks(load_text(text_folder(tmp_path, train="\n".join((*ROWS, "x\tneg"))))) == [
        "Classes are imbalanced, 2 to 4 training sentences each: always answering 'neg' would have 50.00 % accuracy."
    ]
    with pytest.raises(UserError, match=r"takes 5 of 5 training series and leaves too few"):
        held_out(numbers, 0.9)


def test_fingerprints_tell_sets_apart(tmp_path: Path) -> None:
    assert fingerprint(load_data("generated")) == "946edbb45eb49942"  # as before there were sequences
    one = Sequences(("ab", "c"), np.array([0, 1]))
    values = np.arange(6, dtype=np.float32)
    kept = Sequences((values.reshape(3, 2), values[:, None]), np.array([0, 1]))
    others = [
        one,
        Sequences(("a", "bc"), np.array([0, 1])),
        Sequences(("c", "ab"), np.array([0, 1])),
        Sequences(("ab", "c"), np.array([1, 0])),
        kept,
        Sequences((values.reshape(2, 3), values[:, None]), np.array([0, 1])),
        kept.take(np.array([1, 0])),
    ]
    hashes = [fingerprint(SequenceData("n", "n.", ("a", "b"), split, None, one)) for split in others]
    assert len(set(hashes)) == len(others)
    assert hashes[0] == fingerprint(SequenceData("m", "m.", ("a", "b"), one, None, one))


# Series


def test_headers_of_series_that_their_rows_contradict(tmp_path: Path) -> None:
    def headed(*lines: str) -> str:
        return HEADER.replace("@data", "\n".join([*lines, "@data"]))

    cases: tuple[tuple[str, list[str], list[str]], ...] = (
        ("row 1: the series has 3 steps, and @equalLength is true for 2", ["1,2,3:a"], ["@seriesLength 2"]),
        (r"row 2: the series has 1 steps, .* for 2", ["1,2:a", "1:b"], []),
        ("@equalLength is 'false', and 'true' above", ["1:a"], ["@equalLength false"]),
        ("@seriesLength is 'two'", ["1:a"], ["@seriesLength two"]),
    )
    for what, rows, lines in cases:
        refused(what, ts_files(tmp_path, rows, header=headed("@equalLength true", *lines)))


def test_a_row_of_words_behind_a_number_is_no_header(tmp_path: Path) -> None:
    sources = []
    for name, content in (("train", "1,abc,def\n1,2,3\n2,3,4"), ("test", "1,2,3")):
        (tmp_path / f"{name}.csv").write_text(content)
        sources.append(str(tmp_path / f"{name}.csv"))
    refused(r"train\.csv, row 1.*'abc'", sources)


def test_series_of_a_ts_file(tmp_path: Path) -> None:
    header = (
        "# a comment: with a colon\n%another\n\n@PROBLEMNAME toy\n@timestamps FALSE\n@missing true\n@univariate false\n"
        "@dimension 2\n@equalLength false\n@CLASSLABEL true  10 B 9\n@DATA\n"
    )
    rows = ["1, 2 ,-3e-1:4,5,6: 10 ", "", "# no row", "0.5:-1:9", "1,2:3,4:B"]
    data = load_series(ts_files(tmp_path, [*rows, *rows], rows, header=header))
    assert data.classes == ("10", "9", "B")
    assert (data.name, data.channels, data.unit, len(data.train), len(data.test)) == ("toy", 2, "series", 6, 3)
    assert series(data.train)[0].dtype == np.float32
    assert series(data.test)[0].tolist() == [[1, 4], [2, 5], [np.float32(-0.3), 6]]
    assert series(data.test)[1].tolist() == [[0.5, -1]]
    assert names(data, data.test) == ["10", "9", "B"]
    assert data.note.startswith("Time series from train.ts, test.ts; no validation split")


def test_three_files_are_train_val_and_test(tmp_path: Path) -> None:
    train, test = ts_files(tmp_path, test=TS[:2])
    (val,) = write(tmp_path, val_csv="b,4,5,6")
    data = load_series([train, val, test])
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (5, 1, 2)
    assert data.val.labels.tolist() == [1]
    assert data.note == "Time series from train.ts, val.csv, test.ts."


def test_labels_are_spelled_as_the_header_lists_them_and_sorted(tmp_path: Path) -> None:
    header = HEADER.replace("a b", "walk Run 1")
    rows = ["1:Walk", "2:Run", "3:1.0", "4:Run", "5:Walk"]
    assert load_series(ts_files(tmp_path, rows, rows, header=header)).classes == ("1", "Run", "walk")
    assert sorted_names(["10", "9", "-1"]) == ("-1", "9", "10")
    assert sorted_names(["10", "9", "nan"]) == ("10", "9", "nan")


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (["1:a", "1,x:b"], r"row 2: value 'x' of step 2 is no number \(line 7\)"),
        (["1:a", "1_0,2:b"], r"row 2: value '1_0' of step 1 is no number"),
        (["1:a", "1,inf:b"], r"row 2: value 'inf' of step 2 is infinite"),
        (["1:a", "-1e39:b"], r"row 2: value '-1e39' of step 1 is infinite, or too large"),
        (["1:a", "1 2:b"], r"row 2: value '1 2' of step 1 is no number"),
        (["1:a", " :b"], r"row 2: the series has no value, so its length is zero"),
        (["1:a", "1,2"], r"row 2: no label at the end"),
        (["1:a", "1,2:"], r"row 2: no label at the end"),
        (["1:a", "1:2:b"], r"row 2: number of dimensions is 2, not 1 as in the header \(line 7\)"),
        (["1:a", "# comment", "1:c"], r"row 2: label 'c' is not listed after @classLabel \(line 8\)"),
        (["1:a", "2:a"], r"all rows have the label 'a': give two"),
        ([], "no row after @data"),
        (["1,2:a", "1:b", "?,2:b"], r"row 3: the value of step 1 in channel 1 is missing; 1 row has .*\(line 8\)"),
        (["1,NaN:a", "1:b", "1,,2:b"], r"row 1: the value of step 2 in channel 1 is missing; 2 rows have missing"),
    ],
)
def test_rows_of_ts_files_that_are_refused(tmp_path: Path, rows: list[str], what: str) -> None:
    refused(rf"train\.ts(, |: ){what}", ts_files(tmp_path, rows))


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (["1:2:a", "1,2:1,2,3:b"], r"row 2: channel 2 has 3 values, but channel 1 has 2"),
        (["1:2:a", "1:b"], r"row 2: number of dimensions is 1, not 2 as in row 1"),
        (["1:2:a", "1::b"], r"row 2: channel 2: the series has no value"),
        (["1:2:a", "1:q:b"], r"row 2: channel 2: value 'q' of step 1"),
    ],
)
def test_several_channels(tmp_path: Path, rows: list[str], what: str) -> None:
    refused(what, ts_files(tmp_path, rows, header=HEADER.replace("univariate true", "univariate false")))


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("@timeStamps false", "@timestamps true", r"train\.ts, line 2: series with timestamps are not supported"),
        ("@classLabel true a b", "@classLabel false", r"line 4: @classLabel false means series without classes"),
        ("@classLabel true a b", "@targetLabel true", "line 4: @targetLabel means regression"),
        ("@classLabel true a b", "", "no line @classLabel"),
        ("@univariate true", "@univariate maybe", "line 3: @univariate is 'maybe': write true or false"),
        ("@univariate true", "@dimensions two", "line 3: @dimensions is 'two': write a whole number"),
        ("@univariate true", "@dimensions 2", "row 1: number of dimensions is 1, not 2 as in the header"),
        ("@univariate true", "@univariate true\n@dimensions 2", "@dimensions is 2, but @univariate is true"),
        ("@data\n", "", r"line 5: '1,2,3:a' comes before @data"),
    ],
)
def test_headers_of_ts_files_that_are_refused(tmp_path: Path, old: str, new: str, what: str) -> None:
    refused(what, ts_files(tmp_path, header=HEADER.replace(old, new)))


def test_files_of_series_that_are_refused(tmp_path: Path) -> None:
    train, test = ts_files(tmp_path)
    (other,) = write(tmp_path, other_txt="a,1")
    refused("other.txt: this file is neither .ts nor .csv", [train, other])
    refused("no such file: check the path", [train, f"{test[:-3]}x.ts"])
    refused(": this is a folder", [train, str(tmp_path)])
    refused("two are the files of train and test.* instead of 1 file", [train])
    refused("two are the files of train and test.* instead of 4", [train] * 4)
    refused("instead of 0", [])
    with pytest.raises(ValueError, match="sources is the string 'GunPoint'"):
        load_series("GunPoint")
    both = HEADER.replace("@univariate true", "@univariate false")
    (wide,) = write(tmp_path, wide_ts=both + "1:2:a\n")
    refused(r"wide\.ts: number of dimensions is 2, not 1 as in train\.ts", [train, wide])
    (late,) = write(tmp_path, late_ts=HEADER.replace("a b", "a b c") + "1:a\n2:b\n3:c")
    refused(r"late\.ts, row 3: label 'c' is not in train\.ts, which has 'a', 'b' \(line 8\)", [train, late])
    refused(r"late\.ts, row 3: label 'c' is not in train\.ts", [train, late, test])


def test_comments_need_not_be_utf_8(tmp_path: Path) -> None:
    train, test = ts_files(tmp_path)
    content = Path(train).read_bytes()
    Path(train).write_bytes(codecs.BOM_UTF8 + b"# Sch\xe4fer\r\n" + content.replace(b"\n", b"\r\n"))
    assert series(load_series([train, test]).train)[1].ravel().tolist() == [4, 5, 6]
    Path(train).write_bytes(content.replace(b"4,5", b"4\xff,5"))
    refused("line 7: byte 0xff is not UTF-8", [train, test])


def test_series_of_csv_files(tmp_path: Path) -> None:
    train = 'label,t0,t1\na,1,2\n"b",3,"4",5\n\nb, 6\na,7,8\nb,9,1e1\n'
    data = load_series(write(tmp_path, Power_TRAIN_csv=train, test_csv="b,-1\na,2,3"))
    assert [item.tolist() for item in series(data.train)[:3]] == [[[1], [2]], [[3], [4], [5]], [[6]]]
    assert names(data, data.train) == ["a", "b", "b", "a", "b"]
    assert names(data, data.test) == ["b", "a"]
    assert data.channels == 1
    assert "; the first row of Power.TRAIN.csv was taken for a header ('label,t0,t1');" in data.note
    assert data.name == "Power"


@pytest.mark.parametrize(
    ("train", "what"),
    [
        ("a,1\nb\na,2", r"train\.csv, row 2: 'b' has no values, so its length is zero: write .* separated by commas"),
        ("a;1;2\nb;2;3", r"row 1: 'a;1;2' has no values"),
        ("x,t\na,1\nb,2,w", r"row 2: value 'w' of step 2 is no number \(line 3\)"),
        ("a,1\n,2\nb,3", r"row 2: no label in the first cell"),
        ("a,1\nb,2,\nb,3", r"row 2: the value of step 2 in channel 1 is missing"),
        ("a,1\nb,2,Infinity\nb,3", r"row 2: value 'Infinity' of step 2 is infinite"),
        ('a,1\n"b,2\nb,3', r"row 2: its quotes are wrong"),
        ("label,0,1,2\na,1,2,3\nb,2,3,4", r"row 1: 'label' with the values 0, 1, \.\.\. looks like a header"),
        ("x,t\n", r"no row but the header 'x,t'"),
    ],
)
def test_csv_files_that_are_refused(tmp_path: Path, train: str, what: str) -> None:
    refused(what, write(tmp_path, train_csv=train, test_csv="a,1\nb,2"))


def test_missing_values_are_imputed(tmp_path: Path) -> None:
    both = HEADER.replace("@univariate true", "@univariate false")
    rows = ["?,1,nan,NaN,4:0,10,,30,?:a", "1,2:3,4:b", "5:6:a", "7:8:b", "?,2:3,4:a"]
    sources = ts_files(tmp_path, rows, rows[1:4], header=both)
    data = load_series(sources, impute=True)
    assert series(data.train)[0].T.tolist() == [[1, 1, 2, 3, 4], [0, 10, 20, 30, 30]]
    assert series(data.train)[1].T.tolist() == [[1, 2], [3, 4]]
    assert series(data.train)[4].T.tolist() == [[2, 2], [3, 4]]
    assert "; 6 missing values in 2 rows of train.ts were imputed;" in data.note
    assert "test.ts were" not in data.note
    refused(r"row 1: the value of step 1 in channel 1 is missing; 2 rows have missing values \(line 6\): .*", sources)
    nothing = ts_files(tmp_path, [*rows, "1,2:?,?:a"], header=both)
    refused(r"row 6: channel 2 has no value at all \(line 11\)", nothing, impute=True)


def written(items: list[Series], labels: list[str], *, kind: str, folder: str) -> str:
    """Write series in full precision."""
    path = Path(folder) / f"{len(items)}.{kind}"
    rows = [[",".join(map(repr, channel)) for channel in item.T.tolist()] for item in items]
    if kind == "csv":
        path.write_text("\n".join(f"{label},{row[0]}" for row, label in zip(rows, labels, strict=True)))
    else:
        header = f"@problemName x\n@timeStamps false\n@univariate {str(len(rows[0]) == 1).lower()}\n"
        header += f"@dimensions {len(rows[0])}\n@classLabel true {' '.join(sorted(set(labels)))}\n@data\n"
        path.write_text(header + "\n".join(":".join([*row, label]) for row, label in zip(rows, labels, strict=True)))
    return str(path)


def random_series(seed: int, *, channels: int, count: int = 6) -> tuple[list[Series], list[str]]:
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.integers(-30, 30)
    items = [
        (random.standard_normal((random.integers(1, 9), channels)) * scale).astype(np.float32) for _ in range(count)
    ]
    return items, ["b1", "a", *random.choice(["a", "b1"], count - 2).tolist()]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), channels=st.integers(1, 4), kind=st.sampled_from(["ts", "csv"]))
def test_series_come_back_as_they_were_written(seed: int, channels: int, kind: str) -> None:
    items, labels = random_series(seed, channels=1 if kind == "csv" else channels)
    with TemporaryDirectory() as folder:
        file = written(items, labels, kind=kind, folder=folder)
        data = load_series([file, file])
    assert names(data, data.test) == labels
    for item, found in zip(items, series(data.train), strict=True):
        np.testing.assert_array_equal(found, item)


def test_the_same_as_sktime_reads(tmp_path: Path) -> None:
    from sktime.datasets import load_from_tsfile

    items, labels = random_series(7, channels=3, count=12)
    file = written(items, labels, kind="ts", folder=str(tmp_path))
    ours = load_series([file, file])
    theirs, classes = load_from_tsfile(file, return_data_type="nested_univ")
    assert [name.lower() for name in names(ours, ours.train)] == list(classes)
    assert theirs.shape == (12, 3)
    for row, item in enumerate(series(ours.train)):
        expected = np.stack([theirs.iloc[row, channel].to_numpy() for channel in range(3)], axis=1)
        np.testing.assert_array_equal(item, expected.astype(np.float32))
