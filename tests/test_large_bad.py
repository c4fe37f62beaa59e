"""Large sets that are not as they should be: one line that names what is wrong, out of a worker too."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpvg.data.augmentation import Augmentation
from mpvg.data.large import EvalLoader, LargeData, TrainLoader, open_large
from mpvg.data.large import columns as columns_module
from mpvg.data.large import parquet as parquet_module
from mpvg.errors import UserError
from test_large import CLASSES, encoded, folder, parquet, samples, saved, tar, tars

BAD_ROW = 16  # an image of class 1 that is damaged


def damaged(index: int = BAD_ROW) -> bytes:
    content = samples("train")[index][0]
    return content[: len(content) * 6 // 10]


def damaged_folder(root: Path) -> Path:
    (folder(root) / "train" / CLASSES[1] / f"{BAD_ROW:03d}.png").write_bytes(damaged())
    return root


def damaged_tars(root: Path) -> Path:
    tars(root)
    members = []
    for index, (content, label) in list(enumerate(samples("train")))[14:28]:
        members += [
            (f"{index:04d}.png", damaged() if index == BAD_ROW else content),
            (f"{index:04d}.cls", b"%d" % label),
        ]
    tar(root / "train-000001.tar", members)
    return root


def damaged_parquet(root: Path) -> Path:
    import pyarrow.parquet

    path = parquet(root) / "data/train-00000-of-00002.parquet"
    rows = pyarrow.parquet.read_table(path).to_pylist()
    rows[BAD_ROW]["image"]["bytes"] = damaged()
    schema = pyarrow.parquet.read_schema(path)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, row_group_size=5)
    return root


DAMAGED: dict[str, tuple[Callable[[Path], Path], bool, str]] = {
    "folder": (damaged_folder, False, r"train/bee/016\.png"),
    "tars": (damaged_tars, False, r"train-000001\.tar: 0016\.png"),
    "parquet": (damaged_parquet, False, r"train-00000-of-00002\.parquet: row 16"),
    "streamed": (damaged_parquet, True, r"train-00000-of-00002\.parquet: row 16"),
}


def loader(data: LargeData, workers: int) -> TrainLoader:
    return TrainLoader(
        data.train, augmentation=Augmentation(), size=(20, 24), mean=(0, 0, 0), batch_size=42, seed=0, workers=workers
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", list(DAMAGED))
def test_a_damaged_image_is_refused_by_name(tmp_path: Path, kind: str, workers: int) -> None:
    make, streaming, where = DAMAGED[kind]
    data = open_large(str(make(tmp_path / "set")), streaming=streaming)
    drawn = loader(data, workers)

    def epochs() -> None:
        for epoch in range(20):  # a stream's one batch is one worker's
            drawn.set_epoch(epoch)
            list(drawn)

    with pytest.raises(UserError, match=rf"{where} cannot be read .*truncated.*--skip-bad-images\.$") as caught:
        epochs()
    assert "\n" not in str(caught.value)


# not a stream of two workers: one of them has no batch, and so may not meet the image
@pytest.mark.parametrize(
    ("kind", "workers"), [(kind, n) for kind in DAMAGED for n in (0, 2) if kind != "streamed" or not n]
)
def test_a_damaged_image_is_replaced_in_training_and_left_out_in_testing(
    tmp_path: Path, kind: str, workers: int
) -> None:
    make, streaming, where = DAMAGED[kind]
    data = open_large(str(make(tmp_path / "set")), streaming=streaming, skip_bad_images=True)
    assert data.skipped == ()
    for _ in range(2):
        (batch,) = loader(data, workers)
        numbers = batch.pixels[:, 1, 0, 0].tolist()
        labels = batch.labels.tolist()
        assert len(labels) == 42
        assert not any(label == 1 and number == 2 for label, number in zip(labels, numbers, strict=True))
        assert sum(label == 1 and number == 3 for label, number in zip(labels, numbers, strict=True)) == 2
        assert len(data.skipped) == 1
        assert re.search(rf"{where}: .*truncated", data.skipped[0])
    tested = EvalLoader(data.train, size=(20, 24), crop=1, interpolation="bicubic", batch_size=10, workers=workers)
    positions = [position for batch in tested for position in batch.positions.tolist()]
    assert positions == [position for position in range(42) if position != BAD_ROW]


def test_a_batch_without_an_image_is_left_out_and_a_set_without_one_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    for path in root.rglob("*.png"):
        path.write_text("no image")
    data = open_large(str(root), skip_bad_images=True)
    assert list(EvalLoader(data.test, size=(8, 8), crop=1, interpolation="bicubic", batch_size=4)) == []
    assert len(data.skipped) == 9
    with pytest.raises(UserError, match=r"all 42 images of its split cannot be read"):
        list(loader(data, 0))


def broken(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError("an error of ours")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_transforms_are_no_bad_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr("mpvg.data.large.loaders.train_transform", lambda *_, **__: broken)
    data = open_large(str(folder(tmp_path / "set")), skip_bad_images=True)
    with pytest.raises(ZeroDivisionError, match="an error of ours"):
        list(loader(data, workers))
    assert data.skipped == ()


def touched(root: Path) -> Path:
    root.touch()
    return root


def empty(root: Path) -> Path:
    root.mkdir()
    return root


def without_test(root: Path) -> Path:
    folder(root)
    shutil.rmtree(root / "test")
    return root


def without_test_shards(root: Path) -> Path:
    for path in tars(root).glob("test*"):
        path.unlink()
    return root


def without(root: Path, name: str) -> Path:
    (root / name).unlink()
    return root


def cut(root: Path, name: str, size: Callable[[int], int]) -> Path:
    content = (root / name).read_bytes()
    (root / name).write_bytes(content[: size(len(content))])
    return root


def relabelled(root: Path, label: bytes) -> Path:
    tar(root / "test-000001.tar", [("5.png", encoded(0, 1)), ("5.cls", label)])
    return root


def no_labels(root: Path) -> Path:
    import pyarrow.parquet

    parquet(root)
    for path in (root / "data").iterdir():
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop_columns(["label"]), path)
    return root


def labels(root: Path, values: list[Any]) -> Path:
    import pyarrow.parquet

    parquet(root)
    for path in (root / "data").glob("test-*"):
        table = pyarrow.parquet.read_table(path).slice(0, len(values))
        table = table.set_column(table.column_names.index("label"), "label", [values])
        pyarrow.parquet.write_table(table, path)
    return root


def two_sets(root: Path) -> Path:
    parquet(root / "a")
    parquet(root / "b")
    return root


def flat(root: Path) -> Path:
    root.mkdir()
    for index in range(7):
        (root / f"{index}.png").write_bytes(encoded(0, index))
    return root


def one_saved(root: Path) -> Path:
    saved(root)
    return root / "train"


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda root: root, r"set' is no path that exists: a folder is needed, with train/ and test/"),
    "file": (touched, r"set' is a file: a folder is needed"),
    "empty": (empty, r"set has nothing: expected are train/ .* WebDataset shards \("),
    "flat": (flat, r"set has 0\.png, 1\.png, .* and 2 more: expected are"),
    "no test": (without_test, r"set has train: train/ and test/"),
    "class of test": (
        lambda root: (folder(root) / "test/bee").rename(root / "test/be") and root,
        r"test/be is a class that train/ does not have \(did you mean 'bee'",
    ),
    "gap": (
        lambda root: without(tars(root), "train-000001.tar"),
        r"set lacks 1 of 3 shards, train-000001\.tar: fetch them again",
    ),
    "many gaps": (
        lambda root: shutil.copy(tars(root) / "train-000000.tar", root / "train-000020.tar") and root,
        r"lacks 17 of 21 shards, train-000003\.tar, .*000007\.tar, \.\.\.: fetch",
    ),
    "parquet gap": (
        lambda root: without(parquet(root, files=3), "data/train-00002-of-00003.parquet"),
        r"set lacks 1 of 3 shards, train-00002-of-00003\.parquet",
    ),
    "parquet gap the first": (
        lambda root: without(parquet(root, files=2), "data/train-00000-of-00002.parquet"),
        r"set lacks 1 of 2 shards, train-00000-of-00002\.parquet",
    ),
    "no test shards": (
        without_test_shards,
        r"set has train: shards of train and of test \(or val\) are needed",
    ),
    "cut in an image": (
        lambda root: cut(tars(root), "train-000001.tar", lambda size: size // 2),
        r"train-000001\.tar is cut off or no tar file",
    ),
    "cut at a member": (
        lambda root: cut(tars(root), "train-000002.tar", lambda size: 512 * 2),
        r"train-000002\.tar is cut off or no tar file",
    ),
    "no tar": (
        lambda root: (tars(root) / "test-000000.tar").write_text("no tar" * 1000) and root,
        r"test-000000\.tar is cut off or no tar file",
    ),
    "tar without images": (
        lambda root: tar(tars(root) / "test-000000.tar", [("a.txt", b"?")]) and root,
        r"test-000000\.tar holds no images",
    ),
    "sample without label": (
        lambda root: tar(tars(root) / "test-000000.tar", [("a.png", encoded(0, 0))]) and root,
        r"test-000000\.tar: a has no label: a\.cls, or",
    ),
    "label of words": (lambda root: relabelled(tars(root), b"ant"), r"test-000001\.tar: 5\.cls is no whole number"),
    "label too high": (lambda root: relabelled(tars(root), b"3"), r"set: test has the label 3: there are 3 classes"),
    "label too low": (lambda root: relabelled(tars(root), b"-2"), r"set: test has the label -2: there are 3"),
    "unnamed class": (
        lambda root: relabelled(tars(root, named=False), b"3"),
        r"set: test has the class 3, of which train has no image",
    ),
    "class without images": (
        lambda root: (tars(root) / "classes.txt").write_text("a\nb\nc\nd\n") and root,
        r"set: train has no image of class 3 \('d'\)",
    ),
    "columns": (no_labels, r"parquet has the columns image: one of labels is needed, such as label, fine_label"),
    "parquet label": (lambda root: labels(root, [0, 3]), r"set: test has the label 3: there are 3 classes"),
    "no parquet label": (lambda root: labels(root, [0, None]), r"parquet has 1 rows without label: fill them in"),
    "label column of words": (lambda root: labels(root, ["a", "b"]), r"parquet: label is .*: whole numbers are"),
    "two sets": (two_sets, r"set has shards of (test|train) in a/data and b/data: name the folder of one set"),
    "no parquet": (
        lambda root: (parquet(root) / "data/test-00001-of-00002.parquet").write_text("no parquet") and root,
        r"test-00001-of-00002\.parquet cannot be read as Parquet \(.*\): fetch it again",
    ),
    "cut parquet": (
        lambda root: cut(parquet(root), "data/test-00001-of-00002.parquet", lambda size: size - 30),
        r"test-00001-of-00002\.parquet cannot be read as Parquet",
    ),
    "one split": (one_saved, r"train is one split, saved alone: save a DatasetDict"),
    "damaged save": (
        lambda root: (saved(root) / "train/state.json").write_text("{") and root,
        r"set cannot be read by datasets \(.*\): save it again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_bad_sets_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    root = make(tmp_path / "set")
    with pytest.raises(UserError, match=message) as caught:
        open_large(str(root))
    assert "\n" not in str(caught.value)


def test_a_first_shard_may_be_number_one_but_not_two(tmp_path: Path) -> None:
    root = tars(tmp_path / "set")
    (root / "train-000000.tar").rename(root / "train-000003.tar")
    assert len(open_large(str(root)).train) == 42
    (root / "train-000001.tar").rename(root / "train-000004.tar")
    with pytest.raises(UserError, match=r"lacks 1 of 4 shards, train-000001\.tar"):
        open_large(str(root))


def test_braces_name_the_missing(tmp_path: Path) -> None:
    root = tars(tmp_path / "set")
    with pytest.raises(UserError, match=r"set lacks 2 of 5 shards, train-000003\.tar, train-000004\.tar: fetch them"):
        open_large(f"{root}/train-{{000000..000004}}.tar")
    without(root, "test-000001.tar")
    with pytest.raises(UserError, match=r"set lacks 1 of 3 shards, test-000001\.tar"):
        open_large(f"{root}/train-{{000000..000002}}.tar")


def test_what_cannot_be_streamed(tmp_path: Path) -> None:
    for root in (folder(tmp_path / "a"), tars(tmp_path / "b"), tmp_path / "none"):
        with pytest.raises(UserError, match="cannot be streamed: a folder of Parquet files or hf:OWNER/NAME"):
            open_large(str(root), streaming=True)


def test_bytes_that_lie_elsewhere_are_a_bad_image(tmp_path: Path) -> None:
    import pyarrow.parquet

    root = parquet(tmp_path / "set")
    path = root / "data/test-00000-of-00002.parquet"
    rows = pyarrow.parquet.read_table(path).to_pylist()
    rows[1]["image"] = {"bytes": None, "path": "elsewhere.png"}
    rows[2]["image"] = None
    schema = pyarrow.parquet.read_schema(path)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
    split = open_large(str(root)).test
    for row, reason in ((1, "only the path 'elsewhere.png' is there"), (2, "its cell has no bytes")):
        with pytest.raises(UserError, match=rf"row {row} cannot be read as an image \({reason}\)"):
            split.read(row)


def test_row_groups_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpvg.data.large.parquet._LARGEST_GROUP", 100)
    with pytest.raises(UserError, match=r"has a row group of .* GiB, .* row_group_size=100"):
        open_large(str(parquet(tmp_path / "set")))


@pytest.mark.parametrize("module", ["pyarrow", "datasets", "huggingface_hub"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    source = {"pyarrow": parquet, "datasets": saved, "huggingface_hub": lambda root: "hf:me/bugs"}[module](
        tmp_path / "s"
    )

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(columns_module.importlib, "import_module", missing)
    with pytest.raises(UserError, match=rf"this set needs {module}: pip install 'mpvg\[data\]'"):
        open_large(str(source))


@pytest.mark.parametrize("source", ["hf:", "hf:me", "hf:/bugs"])
def test_names_of_the_hub(source: str) -> None:
    with pytest.raises(UserError, match="write hf:OWNER/NAME"):
        open_large(source)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unreachable)
    with pytest.raises(UserError, match=r"'hf:me/bugs' cannot be fetched \(no route\): check the name, the network"):
        open_large("hf:me/bugs")


def test_labels_of_a_stream_are_checked_as_they_are_read(tmp_path: Path) -> None:
    root = labels(tmp_path / "set", [0, 7])
    paths = [str(path) for path in sorted((root / "data").glob("test-*"))]
    split = parquet_module.ParquetSplit(
        paths, open_file=parquet_module._open_local, streaming=True, skip_bad_images=False, read_labels=False
    )
    split.classes = 3
    assert split.label(0) == 0
    with pytest.raises(UserError, match=r"row 1 has the label 7: there are 3 classes from 0"):
        split.label(1)
