"""The .npz source, good and bad."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpvg.data.sources import load_data
from mpvg.errors import UserError
from test_data import arrays, save


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npz(tmp_path: Path, channels: int | None) -> None:
    path = tmp_path / "set.npz"
    save(path, **arrays(side=10, channels=channels))
    data = load_data(str(path))
    assert (data.image_size, data.channels, data.classes) == ((10, 10), channels or 1, ("0", "1", "2"))
    assert data.val is not None
    assert data.train.labels.tolist() == [index % 3 for index in range(24)]
    for split, loaded in (("train", data.train), ("val", data.val), ("test", data.test)):
        expected = arrays(side=10, channels=channels)[f"{split}_images"]
        np.testing.assert_array_equal(loaded.images, expected.reshape(loaded.images.shape))
    resized = load_data(str(path), img_size=16)
    assert resized.image_size == (16, 16)
    assert resized.note == "From set.npz; images of 10 x 10 pixels, resized to 16 x 16."


@pytest.mark.parametrize("side", [8, 512])
def test_without_validation_split(tmp_path: Path, side: int) -> None:
    data = load_data(save(tmp_path / "set.npz", **{**arrays(side=side), "val_images": None, "val_labels": None}))
    assert (data.image_size, data.val) == ((side, side), None)
    assert data.note == "From set.npz; no validation split, so a part of train is taken for it."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "lacks test_labels: it has train_images, train_labels"),
        ({"val_images": None}, "lacks val_images: it has"),
        ({"train_labels": np.array([{}] * 24, dtype=object)}, r"train_labels cannot be read .*without unpickling"),
        ({"train_images": np.zeros((24, 8, 8), np.float32)}, "float32.*uint8"),
        ({"train_images": np.zeros((24, 8, 8, 2), np.uint8)}, r"\(24, 8, 8, 2\)"),
        ({"train_images": np.zeros((24, 8), np.uint8)}, r"train_images is uint8 \(24, 8\)"),
        ({"train_images": np.zeros((24, 0, 8), np.uint8)}, r"train_images is \(24, 0, 8\), without a pixel"),
        ({"train_images": np.zeros((0, 8, 8), np.uint8)}, "0 train_images and 24 train_labels"),
        ({"train_labels": np.zeros((24, 2), np.int64)}, "one whole number"),
        ({"train_labels": np.zeros(24)}, "float64"),
        ({"train_labels": np.zeros(23, np.int64)}, "24 train_images and 23 train_labels"),
        ({"train_labels": np.full(24, -1)}, "train_labels has -1: labels count the classes from 0"),
        ({"test_labels": np.arange(24) - 1}, "test_labels has -1: labels count the classes from 0"),
        ({"train_labels": np.full(24, 2**64 - 1, np.uint64)}, "train_labels has 18446744073709551615: labels count"),
        ({"train_labels": np.full(24, 1_000_000)}, "train_labels has 1000000: labels count"),
        ({"train_labels": np.arange(24) % 3 * 2}, "no image of class 1"),
        ({"train_labels": np.int64(3)}, "0 train_labels"),
        ({"test_labels": np.full(24, 7)}, "test_labels has 7, a class of which"),
        ({"test_images": np.zeros((24, 9, 9), np.uint8)}, "differ in image shape"),
    ],
)
def test_bad_arrays(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data(save(tmp_path / "set.npz", **changes))


@pytest.mark.parametrize(("kept", "message"), [(0, "No data left"), (200, "not a zip file")])
def test_damaged_file(tmp_path: Path, kept: int, message: str) -> None:
    path = Path(save(tmp_path / "set.npz"))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=rf"set\.npz cannot be read as \.npz.*{message}"):
        load_data(str(path))


def test_an_array_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "set.npz"))
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("val_images.npy").header_offset
    content = bytearray(path.read_bytes())
    content[start + 600] ^= 255  # a pixel, so that its checksum is wrong
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"set\.npz: val_images cannot be read .*CRC"):
        load_data(str(path))


def test_an_entry_that_is_no_array_is_named(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "set.npz", train_images=None))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images.npy", b"something else")
    with pytest.raises(UserError, match=r"set\.npz: train_images is no array"):
        load_data(str(path))


def test_a_single_array_and_a_pickle(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"one\.npy holds one array"):
        load_data(str(tmp_path / "one.npy"))
    (tmp_path / "code.npz").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match=r"code\.npz cannot be read as \.npz without unpickling"):
        load_data(str(tmp_path / "code.npz"))
