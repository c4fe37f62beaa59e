"""Folders of images: layouts, mixed sizes and depths, and images that cannot be read."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpvg.data.images import read_image
from mpvg.data.sources import load_data
from mpvg.errors import UserError
from test_data import NO_VALIDATION, tree
from test_data_images import BAD, bad_image


def test_folder(tmp_path: Path) -> None:
    data = load_data(str(tree(tmp_path / "set", mode="L", splits=("train", "val"))))
    assert (data.classes, data.channels, data.val) == (("cat", "dog"), 1, None)
    assert data.note == f"Folder set, tested on val/; {NO_VALIDATION}"
    assert data.class_counts == (4, 4)
    data = load_data(str(tree(tmp_path / "both", splits=("train", "val", "test"))))
    assert data.channels == 3
    assert data.val is not None
    assert data.note == "Folder both, tested on test/."
    assert data.name == "both"


def test_each_folder_is_the_split_of_its_name(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", mode="L", splits=("train", "val", "test"))
    for value, split in ((10, "train"), (20, "val"), (30, "test")):
        for path in (root / split).rglob("*.png"):
            Image.new("L", (8, 8), value + (path.parent.name == "dog")).save(path)
    data = load_data(str(root))
    assert data.val is not None
    for value, loaded in ((10, data.train), (20, data.val), (30, data.test)):
        np.testing.assert_array_equal(loaded.images[:, 0, 0, 0], value + loaded.labels)
        assert loaded.labels.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("side", [8, 512])
def test_sizes(tmp_path: Path, side: int, mode: str) -> None:
    root = tree(tmp_path / "set", side=side, mode=mode)
    data = load_data(str(root), mixed_size=(16, 16))
    assert data.train.images.shape == (8, side, side, 1 if mode == "L" else 3)
    assert "resized" not in data.note
    data = load_data(str(root), img_size=20)
    assert data.test.images.shape == (8, 20, 20, 1 if mode == "L" else 3)
    assert f"images of {side} x {side} pixels, resized to 20 x 20;" in data.note


def test_mixed_sizes(tmp_path: Path) -> None:
    root = tree(tmp_path / "set")
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8))
    wide.save(root / "train" / "dog" / "wide.png")
    with pytest.raises(UserError, match=r"2 sizes \(mostly 8 x 8\).*--img-size"):
        load_data(str(root))
    data = load_data(str(root), img_size=12, mixed_size=(9, 7))
    assert data.train.images.shape == (9, 12, 12, 3)
    expected = read_image(root / "train" / "dog" / "wide.png", size=(12, 12), channels=3)
    np.testing.assert_array_equal(data.train.images[-1], expected)
    data = load_data(str(root), mixed_size=(9, 7))
    assert (data.train.images.shape, data.test.images.shape) == ((9, 9, 7, 3), (8, 9, 7, 3))
    assert "; images of 2 sizes, 8 x 8 to 12 x 8 pixels, resized to 7 x 9; " in data.note


def test_training_sees_what_prediction_sees(tmp_path: Path) -> None:
    root = tree(tmp_path / "set")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 18, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6
    noise.save(root / "train" / "cat" / "0.png", exif=exif)
    data = load_data(str(root), mixed_size=(24, 16))
    expected = read_image(root / "train" / "cat" / "0.png", size=(24, 16), channels=3)
    np.testing.assert_array_equal(data.train.images[0], expected)
    assert "8 x 8 to 30 x 18 pixels" in data.note  # the size of the upright image


def test_depths_and_modes_of_images(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", mode="L")
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(root / "train" / "cat" / "0.png")
    Image.fromarray(ramp // 300).save(root / "train" / "cat" / "1.png")  # 16 bits, and dark: it stays dark
    data = load_data(str(root))
    assert data.channels == 1
    assert data.train.images[1].max() == 1
    np.testing.assert_array_equal(data.train.images[0, ..., 0], np.round(ramp / 257))
    Image.new("RGB", (8, 8), (200, 0, 0)).save(root / "test" / "dog" / "3.png")  # one colour image, and the last
    data = load_data(str(root))
    assert data.channels == 3
    assert data.test.images[-1, 0, 0].tolist() == [200, 0, 0]


def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    root = tree(tmp_path / "set")
    for name in (".ipynb_checkpoints/0.png", "cat/.ipynb_checkpoints/0.png", "cat/._0.png"):
        (root / "train" / name).parent.mkdir(exist_ok=True)
        (root / "train" / name).write_text("no image")
    data = load_data(str(root))
    assert (data.classes, data.class_counts) == (("cat", "dog"), (4, 4))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ((), "set has no folders: train/ and test/"),
        (("raw",), r"set has raw: train/ and test/ \(or val/\) are needed"),
        (("train/cat",), "set has train: train/ and test/"),
        (("test/cat", "val/cat"), "set has test, val: train/ and test/"),
        (("train", "test"), r"train has no class folders"),
        (("train/cat", "test/cat"), r"train/cat holds no images \(\.bmp, .*: add some or remove the class"),
    ],
)
def test_other_layouts(tmp_path: Path, folders: tuple[str, ...], message: str) -> None:
    (tmp_path / "set").mkdir()
    for name in folders:
        (tmp_path / "set" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        load_data(str(tmp_path / "set"))


def test_classes_must_be_those_of_train(tmp_path: Path) -> None:
    root = tree(tmp_path / "set")
    (root / "test" / "cta").mkdir()
    with pytest.raises(UserError, match=r"cta is a class that train/ does not have \(did you mean 'cat'"):
        load_data(str(root))
    (root / "test" / "cta").rmdir()
    (root / "test" / "dog").rename(root / "dog")
    with pytest.raises(UserError, match=r"test/dog holds no images"):
        load_data(str(root))


@pytest.mark.parametrize("kind", sorted(set(BAD) - {"folder", "missing"}))
def test_bad_images_are_refused_or_left_out(tmp_path: Path, kind: str) -> None:
    root = tree(tmp_path / "set", side=50)
    expected = load_data(str(root))
    path = bad_image(root / "train" / "cat", kind)
    with pytest.raises(UserError, match=rf"train/cat/{kind}\.png cannot be read .*{BAD[kind]}.*--skip-bad-images\.$"):
        load_data(str(root))
    data = load_data(str(root), skip_bad_images=True)
    assert len(data.skipped) == 1
    assert data.skipped[0].startswith(f"{path}: ")
    assert BAD[kind] in data.skipped[0]
    np.testing.assert_array_equal(data.train.images, expected.train.images)
    np.testing.assert_array_equal(data.train.labels, expected.train.labels)


@pytest.mark.parametrize("kind", ["text", "late-PNG"])
def test_what_is_left_out_decides_nothing(tmp_path: Path, kind: str) -> None:
    """Neither the size (50 pixels) nor the colours of an image that is damaged."""
    root = tree(tmp_path / "set", mode="L")
    bad = bad_image(root / "test" / "dog", kind)
    bad_image(root / "train" / "dog", kind)
    data = load_data(str(root), mixed_size=(16, 16), skip_bad_images=True)
    assert data.train.images.shape == data.test.images.shape == (8, 8, 8, 1)
    assert "resized" not in data.note
    assert [line.split(": ")[0] for line in data.skipped] == [str(bad), str(root / "train" / "dog" / bad.name)]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["text", "late-PNG"])
def test_a_class_without_readable_images(tmp_path: Path, kind: str, split: str) -> None:
    root = tree(tmp_path / "set")
    for path in (root / split / "dog").iterdir():
        path.unlink()
    bad = bad_image(root / split / "dog", kind)
    with pytest.raises(UserError, match=rf"class 'dog' has no image in {split} that can be read \(1 cannot, {bad}: "):
        load_data(str(root), mixed_size=(8, 8), skip_bad_images=True)


def test_each_file_is_opened_twice_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Counter[str] = Counter()
    original = Image.open

    def count(file: Any, *args: Any, **keywords: Any) -> Image.Image:
        opened[file.name] += 1
        return original(file, *args, **keywords)

    root = tree(tmp_path / "set")
    bad = bad_image(root / "train" / "dog", "text")
    monkeypatch.setattr(Image, "open", count)
    load_data(str(root), img_size=16, skip_bad_images=True)
    assert len(opened) == 17
    assert {name for name, count in opened.items() if count != 2} == {str(bad)}
    assert opened[str(bad)] == 1


def test_memory_stays_near_the_size_of_the_result(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", side=256)
    tracemalloc.start()
    data = load_data(str(root))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    result = data.train.images.nbytes + data.test.images.nbytes
    assert result == 16 * 256 * 256 * 3
    assert peak < 1.3 * result  # the result, and one image


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    root = tree(tmp_path / "set")
    more = tree(tmp_path / "more")
    (root / "train" / "cat" / "more").symlink_to(more / "train" / "dog")
    (root / "train" / "dog" / "back").symlink_to(root / "train")
    data = load_data(str(root))
    assert data.class_counts[0] == 8
    assert data.class_counts[1] >= 4
