"""Sources of images, good and bad, and the batches drawn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mpvg.data.batches import Pixels, epoch_batches
from mpvg.data.sources import load_data, split_validation
from mpvg.errors import UserError


def arrays(*, side: int = 8, channels: int | None = None, count: int = 24) -> dict[str, Any]:
    """MedMNIST keys with random pixels; labels (N, 1) as MedMNIST has them."""
    random = np.random.default_rng(0)
    shape = (count, side, side) if channels is None else (count, side, side, channels)
    return {
        f"{split}_{kind}": random.integers(0, 256, shape, dtype=np.uint8)
        if kind == "images"
        else (np.arange(count) % 3)[:, None]
        for split in ("train", "val", "test")
        for kind in ("images", "labels")
    }


def save(path: Path, **changes: Any) -> str:
    kept = {key: value for key, value in {**arrays(), **changes}.items() if value is not None}
    np.savez(path, **kept)
    return str(path)


def tree(root: Path, *, side: int = 8, mode: str = "RGB", splits: tuple[str, ...] = ("train", "test")) -> Path:
    for split in splits:
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(4):
                Image.new(mode, (side, side), 40 * label + index).save(root / split / name / f"{index}.png")
    return root


def test_digits_ship_with_scikit_learn() -> None:
    data = load_data("digits")
    assert (data.image_size, data.channels, len(data.classes), data.val) == ((8, 8), 1, 10, None)
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.images.max() == 255
    assert np.bincount(data.test.labels).min() >= 34


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npz(tmp_path: Path, channels: int | None) -> None:
    path = tmp_path / "set.npz"
    save(path, **arrays(side=10, channels=channels))
    data = load_data(str(path))
    assert (data.image_size, data.channels) == ((10, 10), channels or 1)
    assert data.val is not None
    assert data.train.labels.shape == (24,)
    assert load_data(str(path), img_size=16).image_size == (16, 16)


def test_folder(tmp_path: Path) -> None:
    data = load_data(str(tree(tmp_path / "set", mode="L", splits=("train", "val"))))
    assert (data.classes, data.channels, data.val) == (("cat", "dog"), 1, None)
    assert "tested on val/" in data.note
    data = load_data(str(tree(tmp_path / "both", splits=("train", "val", "test"))))
    assert data.channels == 3
    assert data.val is not None


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    root = tree(tmp_path / "set")
    Image.new("RGB", (12, 8)).save(root / "train" / "dog" / "wide.png")
    with pytest.raises(UserError, match=r"2 sizes \(mostly 8 x 8\).*--img-size"):
        load_data(str(root))
    assert load_data(str(root), img_size=12).train.images.shape == (9, 12, 12, 3)


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


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'digit' is no path.*did you mean 'digits'"):
        load_data("digit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no folders: train/ and test/"):
        load_data(str(tmp_path / "empty"))
    root = tree(tmp_path / "set")
    (root / "test" / "cta").mkdir()
    with pytest.raises(UserError, match=r"cta is a class that train/ does not have \(did you mean 'cat'"):
        load_data(str(root))
    (root / "test" / "cta").rmdir()
    broken = root / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(UserError, match=r"dog/1\.png cannot be read as an image"):
        load_data(str(root))
    for path in (root / "train" / "dog").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"train/dog holds no images"):
        load_data(str(root))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "lacks test_labels"),
        ({"train_labels": np.array([{}] * 24, dtype=object)}, "without unpickling"),
        ({"train_images": np.zeros((24, 8, 8), np.float32)}, "float32.*uint8"),
        ({"train_images": np.zeros((24, 8, 8, 2), np.uint8)}, r"\(24, 8, 8, 2\)"),
        ({"train_labels": np.zeros((24, 2), np.int64)}, "one whole number"),
        ({"train_labels": np.zeros(24)}, "float64"),
        ({"train_labels": np.zeros(23, np.int64)}, "24 train_images and 23 train_labels"),
        ({"train_labels": np.full(24, -1)}, "labels count the classes from 0"),
        ({"train_labels": np.arange(24) % 3 * 2}, "no image of class 1"),
        ({"train_labels": np.full(24, 2**64 - 1, np.uint64)}, "18446744073709551615"),
        ({"train_labels": np.int64(3)}, "0 train_labels"),
        ({"test_labels": np.full(24, 7)}, "test_labels has 7"),
        ({"test_images": np.zeros((24, 9, 9), np.uint8)}, "differ in image shape"),
    ],
)
def test_bad_npz(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data(save(tmp_path / "set.npz", **changes))


def test_too_few_images(tmp_path: Path) -> None:
    few = {
        "train_images": np.zeros((2, 8, 8), np.uint8),
        "train_labels": np.arange(2),
        "test_labels": np.arange(24) % 2,
    }
    with pytest.raises(UserError, match="2 training images and no val"):
        load_data(save(tmp_path / "set.npz", **few, val_images=None, val_labels=None))


def test_truncated_npz(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "set.npz"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"set\.npz cannot be read"):
        load_data(str(path))


def test_validation_split_depends_on_the_seed_alone() -> None:
    data = load_data("digits")
    train, val = split_validation(data, fraction=0.2, seed=0)
    again, _ = split_validation(data, fraction=0.2, seed=0)
    other, _ = split_validation(data, fraction=0.2, seed=1)
    assert len(train) + len(val) == len(data.train)
    assert np.array_equal(train.images, again.images)
    assert not np.array_equal(train.images, other.images)
    assert np.bincount(val.labels).min() >= 25  # stratified


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    images = torch.arange(10.0)[:, None, None, None].expand(10, 1, 4, 4).contiguous()
    labels = torch.arange(10)

    def order(seed: int, epoch: int) -> list[int]:
        drawn = list(epoch_batches(images, labels, batch_size=3, shift=0, seed=seed, epoch=epoch))
        assert all(torch.equal(batch[:, 0, 0, 0].long(), target) for batch, target in drawn)
        return torch.cat([target for _, target in drawn]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len(order(0, 0)) == len(set(order(0, 0))) == 9
    assert order(0, 0) != order(0, 1) != order(1, 0)


def test_shift_moves_whole_pixels_over_a_repeated_border() -> None:
    image = torch.arange(25.0).reshape(1, 1, 5, 5)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode="replicate")
    allowed = {tuple(padded[0, 0, y : y + 5, x : x + 5].flatten().tolist()) for y in range(5) for x in range(5)}
    seen = set()
    for epoch in range(300):
        ((batch, _),) = epoch_batches(image, torch.zeros(1), batch_size=1, shift=2, seed=0, epoch=epoch)
        seen.add(tuple(batch.flatten().tolist()))
    assert seen == allowed


def test_pixels_have_mean_zero_and_deviation_one() -> None:
    train = load_data("digits").train
    images, _ = Pixels(train)(train)
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std().item() == pytest.approx(1, abs=1e-4)
