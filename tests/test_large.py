"""Large sets: the same images, labels and classes, whichever container they lie in."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpvg.data.images import read_image
from mpvg.data.large import LargeData, LargeSplit, large_from_memory, open_large
from mpvg.data.large import hub as hub_module
from mpvg.data.large.shards import expand_braces, split_word
from mpvg.data.large.tar_members import tar_members
from mpvg.data.sources import load_data
from mpvg.errors import UserError

CLASSES = ("ant", "bee", "cat")
COUNTS = {"train": 42, "test": 9}
Sample = tuple[bytes, int]


def encoded(label: int, index: int, *, grey: bool = False, oriented: bool = False) -> bytes:
    """Return the bytes of a PNG whose pixels tell its label and number, among noise, in one of several sizes."""
    height, width = 20 + 3 * (index % 4), 24
    pixels = np.random.default_rng([label, index]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[:4, :4] = 80 * label, index, 0
    exif = Image.Exif()
    if oriented:
        exif[0x112] = 6
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "PNG", exif=exif)
    return file.getvalue()


def samples(split: str) -> list[Sample]:
    """Return the images of a split, sorted by class as folders are."""
    count, start = COUNTS[split], {"train": 0, "test": 100}[split]
    return [
        (encoded(label, start + index, grey=index == 1, oriented=index == 2), label)
        for label in range(3)
        for index in range(count // 3)
    ]


def folder(root: Path) -> Path:
    for split in COUNTS:
        for index, (content, label) in enumerate(samples(split)):
            path = root / split / CLASSES[label] / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def table(split: str, *, image: str = "image", label: str = "label") -> Any:
    import datasets

    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(CLASSES))})
    rows = samples(split)
    columns = {image: [{"bytes": content, "path": None} for content, _ in rows], label: [row[1] for row in rows]}
    return datasets.Dataset.from_dict(columns, features=features)


def parquet(root: Path, *, files: int = 2, image: str = "image", label: str = "label") -> Path:
    """Write files of some row groups each, as sets of the Hub have them."""
    import pyarrow.parquet

    (root / "data").mkdir(parents=True)
    for split in COUNTS:
        whole = table(split, image=image, label=label).with_format("arrow")[:]
        rows = -(-len(whole) // files)
        for number in range(files):
            path = root / "data" / f"{split}-{number:05d}-of-{files:05d}.parquet"
            pyarrow.parquet.write_table(whole.slice(number * rows, rows), path, row_group_size=4)
    return root


def saved(root: Path) -> Path:
    import datasets

    datasets.DatasetDict({split: table(split) for split in COUNTS}).save_to_disk(str(root))
    return root


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tars(root: Path, *, shards: int = 3, json_labels: bool = False, named: bool = True) -> Path:
    for split in COUNTS:
        rows = samples(split)
        size = -(-len(rows) // shards)
        for shard in range(shards):
            members = []
            for index in range(shard * size, min((shard + 1) * size, len(rows))):
                content, label = rows[index]
                told = ("json", json.dumps({"label": label})) if json_labels else ("cls", f"{label}\n")
                members += [(f"{index:04d}.png", content), (f"{index:04d}.{told[0]}", told[1].encode())]
            tar(root / f"{split}-{shard:06d}.tar", members)
    if named:
        (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


OPENED: dict[str, Callable[[Path], LargeData]] = {
    "folder": lambda root: open_large(str(folder(root))),
    "parquet": lambda root: open_large(str(parquet(root))),
    "streamed": lambda root: open_large(str(parquet(root)), streaming=True),
    "saved": lambda root: open_large(str(saved(root))),
    "tars": lambda root: open_large(str(tars(root))),
    "memory": lambda root: large_from_memory(load_data(str(folder(root)), mixed_size=(26, 24))),
}


def assert_holds(split: LargeSplit, expected: list[Sample], tmp_path: Path) -> None:
    assert len(split) == len(expected)
    assert split.labels is not None
    assert split.labels.dtype == np.int64
    assert split.labels.tolist() == [label for _, label in expected]
    for index in (len(expected) - 1, 0, 2, 17 % len(expected), 1):
        (tmp_path / "one.png").write_bytes(expected[index][0])
        pixels = read_image(tmp_path / "one.png", size=None, channels=3)
        picture = split.read(index)
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture), pixels)
        assert split.label(index) == expected[index][1]


@pytest.mark.parametrize("kind", [kind for kind in OPENED if kind != "memory"])
def test_same_images_whichever_container(tmp_path: Path, kind: str) -> None:
    data = OPENED[kind](tmp_path / "set")
    assert data.name == "set"
    assert data.note.startswith(("set, ", "Folder set"))
    assert data.note.endswith("tested on test.") or kind == "folder"
    assert (data.classes, data.val, data.skipped) == (CLASSES, None, ())
    for name, split in (("train", data.train), ("test", data.test)):
        assert_holds(split, samples(name), tmp_path)
        copy = pickle.loads(pickle.dumps(split))  # as workers that are spawned get it, after the first reads
        assert_holds(copy, samples(name), tmp_path)
    assert data.train.streamed is (kind == "streamed")


def test_memory(tmp_path: Path) -> None:
    inner = load_data(str(folder(tmp_path / "set")), img_size=16)
    data = large_from_memory(inner)
    assert (data.classes, data.note, data.val) == (inner.classes, inner.note, None)
    np.testing.assert_array_equal(np.asarray(data.train.read(5)), inner.train.images[5])
    grey = large_from_memory(load_data("digits"))
    assert grey.train.read(0).mode == "RGB"
    assert grey.train.where(3) == "digits: train: image 3"
    assert grey.fingerprint() == large_from_memory(load_data("digits")).fingerprint() != data.fingerprint()


def test_where_an_image_lies(tmp_path: Path) -> None:
    assert open_large(str(folder(tmp_path / "a"))).train.where(40) == str(tmp_path / "a/train/cat/040.png")
    assert open_large(str(parquet(tmp_path / "b"))).train.where(22).endswith("train-00001-of-00002.parquet: row 1")
    assert open_large(str(saved(tmp_path / "c"))).train.where(7).endswith("c: train row 7")
    assert open_large(str(tars(tmp_path / "d"))).train.where(14) == f"{tmp_path / 'd/train-000001.tar'}: 0014.png"


def test_val_is_the_test_split_where_there_is_no_other(tmp_path: Path) -> None:
    root = folder(tmp_path / "a")
    (root / "test").rename(root / "val")
    data = open_large(str(root))
    assert (data.val, len(data.test), data.note) == (None, 9, "Folder a, tested on val/.")
    root = parquet(tmp_path / "b")
    for path in (root / "data").glob("test-*"):
        path.rename(path.with_name(path.name.replace("test", "validation")))
    assert (data := open_large(str(root))).note == "b, 4 Parquet files, tested on val."
    assert data.val is None
    root = tars(tmp_path / "c")
    for path in root.glob("test-*"):
        path.with_name(path.name.replace("test", "val")).write_bytes(path.read_bytes())
    data = open_large(str(root))
    assert data.val is not None
    assert (len(data.val), len(data.test)) == (9, 9)


def test_a_test_split_without_labels_is_left_aside(tmp_path: Path) -> None:
    """As ImageNet's on the Hub."""
    root = tars(tmp_path / "set")
    for path in root.glob("test-*"):
        path.with_name(path.name.replace("test", "val")).write_bytes(path.read_bytes())
        path.unlink()
    tar(root / "test-000000.tar", [("0.png", encoded(0, 0)), ("0.cls", b"-1")])
    data = open_large(str(root))
    assert (len(data.test), data.val) == (9, None)
    assert data.note.endswith("tested on val; the images of test have no labels.")


@pytest.mark.parametrize("kind", ["folder", "parquet", "saved", "tars"])
def test_fingerprints_tell_sets_apart(tmp_path: Path, kind: str) -> None:
    found = OPENED[kind](tmp_path / "set")
    assert found.fingerprint() == found.fingerprint() == open_large(str(tmp_path / "set")).fingerprint()
    if kind == "folder":
        (tmp_path / "set/train/ant/000.png").write_bytes(encoded(0, 0) + b"longer")
    elif kind == "tars":
        tar(tmp_path / "set/train-000003.tar", [("9999.png", encoded(0, 9)), ("9999.cls", b"0")])
    else:
        other = {"parquet": parquet, "saved": saved}[kind]
        COUNTS["test"] = 12
        try:
            return_value = open_large(str(other(tmp_path / "other")))
        finally:
            COUNTS["test"] = 9
        assert return_value.fingerprint() != found.fingerprint()
        return
    assert open_large(str(tmp_path / "set")).fingerprint() != found.fingerprint()


@pytest.mark.parametrize("names", [{"image": "img", "label": "fine_label"}, {"image": "photo", "label": "species"}])
def test_columns_by_usual_names_or_by_kind(tmp_path: Path, names: Any) -> None:
    assert_holds(open_large(str(parquet(tmp_path / "set", **names))).train, samples("train"), tmp_path)


def test_plain_parquet_that_another_program_wrote(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    for split in COUNTS:
        (tmp_path / "set" / split).mkdir(parents=True)
        rows = samples(split)
        plain = pyarrow.table({"jpg": [content for content, _ in rows], "target": [label for _, label in rows]})
        pyarrow.parquet.write_table(plain, tmp_path / "set" / split / "0000.parquet", row_group_size=10)
    data = open_large(str(tmp_path / "set"))
    assert data.classes == ("0", "1", "2")
    assert_holds(data.train, samples("train"), tmp_path)
    (tmp_path / "set" / "classes.txt").write_text("\n".join(CLASSES))
    assert open_large(str(tmp_path / "set")).classes == CLASSES


def test_tars_by_braces_and_other_layouts(tmp_path: Path) -> None:
    root = tars(tmp_path / "set", json_labels=True, named=False)
    data = open_large(f"{root}/train-{{000000..000002}}.tar")
    assert data.classes == ("0", "1", "2")
    assert_holds(data.train, samples("train"), tmp_path)
    assert_holds(data.test, samples("test"), tmp_path)
    with pytest.raises(UserError, match="test has the class 2, of which train has no image"):
        open_large(f"{root}/train-{{000000..000001}}.tar")  # the third shard is not asked for
    for split in COUNTS:
        (root / split).mkdir()
        for path in root.glob(f"{split}-*.tar"):
            path.rename(root / split / path.name.removeprefix(f"{split}-"))
    assert_holds(open_large(str(root)).train, samples("train"), tmp_path)


def test_tar_members_with_long_names_and_others_among_them(tmp_path: Path) -> None:
    long = "n" * 150
    members = [(f"{long}.PNG", encoded(0, 0)), (f"{long}.cls", b"0"), ("b.txt", b"?"), ("b.seg.png", b"no image")]
    tar(tmp_path / "train.tar", [*members, ("a/b.cls", b"1"), ("a/b.png", encoded(1, 1))])
    tar(tmp_path / "val.tar", [("1.webp", encoded(1, 1)), ("1.json", b'{"label": 1}'), ("1.cls", b"1")])
    data = open_large(str(tmp_path))
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(np.asarray(data.train.read(1))[0, 0], [80, 1, 0])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("names", [["a.png", "b.cls"], ["d/" * 60 + "a.png", "b"], ["a", "é" * 20, "n" * 90, "b"]])
def test_members_are_those_that_tarfile_finds(tmp_path: Path, form: int, names: list[str]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for size, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 511 + size
            archive.addfile(info, io.BytesIO(bytes(info.size)))
        archive.addfile(tarfile.TarInfo("link"))
        if form != tarfile.USTAR_FORMAT:
            archive.addfile(tarfile.TarInfo("m" * 200))
        folder_info = tarfile.TarInfo("folder")
        folder_info.type = tarfile.DIRTYPE
        archive.addfile(folder_info)
        archive.addfile(tarfile.TarInfo("last"))
    with (tmp_path / "a.tar").open("rb") as file:
        found = list(tar_members(file.fileno()))
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert found == [(info.name, info.offset_data, info.size) for info in archive if info.isreg()]
    content = (tmp_path / "a.tar").read_bytes()
    for size in (100, 512, 1000, 1024, found[-1][1]):
        (tmp_path / "cut.tar").write_bytes(content[:size])
        with (tmp_path / "cut.tar").open("rb") as file, pytest.raises(tarfile.TarError):
            list(tar_members(file.fileno()))


def test_braces_and_words() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{0..1}/{1..2}.tar") == ["0/1.tar", "0/2.tar", "1/1.tar", "1/2.tar"]
    assert expand_braces("a.tar") == ["a.tar"]
    words = {
        "imagenet1k-train-0000.tar": "train",
        "imagenet1k-validation-00.tar": "val",
        "trainer.tar": "",
        "Dev": "val",
    }
    assert {name: split_word(name) for name in words} == words


class _FakeHub:
    """The Hub's library, over a folder."""

    class errors:  # noqa: N801
        RevisionNotFoundError = KeyError

    def __init__(self, root: Path, revision: str = "main") -> None:
        self.root, self.revision = root, revision
        self.opened: list[str] = []

    def HfApi(self) -> _FakeHub:  # noqa: N802
        return self

    HfFileSystem = HfApi

    def list_repo_files(self, repo: str, repo_type: str, revision: str) -> list[str]:
        assert (repo, repo_type) == ("me/bugs", "dataset")
        if revision != self.revision:
            raise KeyError(revision)
        return [str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()]

    def snapshot_download(self, repo: str, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        assert (revision, len(allow_patterns)) == (self.revision, 4)
        return str(self.root)

    def open(self, path: str, mode: str) -> Any:
        prefix = f"datasets/me/bugs@{self.revision.replace('/', '%2F')}/"
        assert path.startswith(prefix)
        self.opened.append(path)
        return open(self.root / path.removeprefix(prefix), mode)


@pytest.mark.parametrize("revision", ["main", "refs/convert/parquet"])
def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    hub = _FakeHub(parquet(tmp_path / "set"), revision)
    monkeypatch.setattr(hub_module, "needed", lambda module: hub)
    data = open_large("hf:me/bugs")
    assert (data.name, data.note) == ("me/bugs", "me/bugs of the Hugging Face Hub, 4 Parquet files, tested on test.")
    assert_holds(data.train, samples("train"), tmp_path)
    assert not hub.opened
    streamed = open_large("hf:me/bugs/data", streaming=True)
    assert streamed.classes == CLASSES
    assert streamed.note == "me/bugs, 4 Parquet files, streamed from the Hugging Face Hub, tested on test."
    assert len(hub.opened) == 6  # the footers, and the labels of test
    assert (streamed.train.labels, streamed.train.streamed, len(streamed.train)) == (None, True, 42)
    assert [streamed.train.label(index) for index in (0, 20, 41)] == [0, 1, 2]
    np.testing.assert_array_equal(np.asarray(streamed.train.read(20))[0, 0], [80, 6, 0])


def test_nothing_is_imported_or_printed_until_it_is_needed(tmp_path: Path) -> None:
    saved(tmp_path / "set")
    code = (
        "import sys; import mpvg.data.large as large; "
        "print(sorted({'datasets', 'pyarrow', 'pandas'} & set(sys.modules))); "
        f"large.open_large({str(tmp_path / 'set')!r})"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
