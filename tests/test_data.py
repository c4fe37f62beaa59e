"""Sources of images and what is common to them, and the batches drawn from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mpvg.data.augmentation import Augmentation
from mpvg.data.batches import epoch_batches
from mpvg.data.images import empty_images, to_pixels
from mpvg.data.preprocessing import Preprocessing, to_tensors
from mpvg.data.sources import ImageData, Split, load_data, split_validation
from mpvg.errors import UserError

NO_VALIDATION = "no validation split, so a part of train is taken for it."


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
    assert data.test.labels[:8].tolist() == [1, 4, 8, 6, 5, 9, 9, 1]  # it stays the same fifth
    assert data.skipped == ()
    assert data.note.endswith(
        f"8 x 8 pixels, from scikit-learn; a fixed stratified fifth is the test set; {NO_VALIDATION}"
    )


@pytest.mark.parametrize("img_size", [8, 11, 32])
def test_sources_of_one_size_are_resized_on_demand_only(img_size: int) -> None:
    kept = load_data("digits", mixed_size=(32, 32))
    assert kept.image_size == (8, 8)
    assert "resized" not in kept.note
    data = load_data("digits", img_size=img_size)
    assert data.image_size == (img_size, img_size)
    assert (f"images of 8 x 8 pixels, resized to {img_size} x {img_size};" in data.note) == (img_size != 8)
    expected = to_pixels(kept.test.images[5], size=(img_size, img_size), channels=1)
    np.testing.assert_array_equal(data.test.images[5], expected)


@pytest.mark.parametrize("source", ["digit", "/no/such/path", "a" * 5000, "nul\0byte", "no/such:folder"])
def test_sources_that_do_not_exist(source: str) -> None:
    with pytest.raises(UserError, match="is no path that exists and not built in") as caught:
        load_data(source)
    assert len(str(caught.value)) < 800
    assert ("did you mean 'digits'" in str(caught.value)) == (source == "digit")


@pytest.mark.parametrize("img_size", [-1, 0, 4097])
def test_sizes_out_of_range(img_size: int) -> None:
    with pytest.raises(UserError, match=f"--img-size {img_size} is out of range"):
        load_data("digits", img_size=img_size)


def test_a_source_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", forbid)
    with pytest.raises(UserError, match=r"cannot be read .*Permission denied.*check the path"):
        load_data(str(tmp_path))


def test_images_larger_than_the_memory() -> None:
    with pytest.raises(UserError, match=r"1000000000 images of 4096 x 2048 pixels need 23437500 GiB.*--img-size"):
        empty_images(10**9, (2048, 4096), 3)


def test_too_few_images(tmp_path: Path) -> None:
    few = {
        "train_images": np.zeros((4, 8, 8), np.uint8),
        "train_labels": np.arange(4) % 2,
        "test_labels": np.arange(24) % 2,
    }
    with pytest.raises(UserError, match="4 training images and no val"):
        load_data(save(tmp_path / "set.npz", **few, val_images=None, val_labels=None))
    few |= {"val_images": few["train_images"], "val_labels": few["train_labels"]}
    assert len(load_data(save(tmp_path / "set.npz", **few)).train) == 4


@pytest.mark.parametrize(
    ("labels", "counts", "imbalance"),
    [([0, 1, 2], (1, 1, 1), 1.0), ([0, 0, 0, 1, 2, 2], (3, 1, 2), 3.0), ([1, 1], (0, 2, 0), float("inf"))],
)
def test_imbalance_of_the_training_split(labels: list[int], counts: tuple[int, ...], imbalance: float) -> None:
    def split(labels: list[int]) -> Split:
        return Split(np.zeros((len(labels), 2, 3, 1), np.uint8), np.array(labels))

    data = ImageData("set", "note", ("a", "b", "c"), split(labels), None, split([2] * 50))
    assert data.class_counts == counts
    assert all(type(count) is int for count in data.class_counts)
    assert (data.imbalance, data.image_size) == (imbalance, (2, 3))


def test_validation_split_depends_on_the_seed_alone() -> None:
    data = load_data("digits")
    train, val = split_validation(data, fraction=0.2, seed=0)
    again, _ = split_validation(data, fraction=0.2, seed=0)
    other, _ = split_validation(data, fraction=0.2, seed=1)
    assert len(train) + len(val) == len(data.train)
    assert np.array_equal(train.images, again.images)
    assert not np.array_equal(train.images, other.images)
    assert np.bincount(val.labels).min() >= 25  # stratified


def test_a_validation_split_of_the_source_is_kept(tmp_path: Path) -> None:
    data = load_data(save(tmp_path / "set.npz"))
    assert split_validation(data, fraction=0.2, seed=0) == (data.train, data.val)
    assert data.note == "From set.npz."


@pytest.mark.parametrize(("fraction", "held"), [(0.001, 1), (0.2, 5), (0.85, 21)])
def test_any_fraction_leaves_images_of_all_classes(tmp_path: Path, fraction: float, held: int) -> None:
    labels = np.array([0] * 12 + [1] * 11 + [2])
    data = load_data(save(tmp_path / "set.npz", train_labels=labels, val_images=None, val_labels=None))
    for seed in range(20):
        train, val = split_validation(data, fraction=fraction, seed=seed)
        assert (len(train), len(val)) == (24 - held, held)
        assert np.bincount(train.labels, minlength=3).min() >= 1
        drawn = sorted(image.tobytes() for image in np.concatenate([train.images, val.images]))
        assert drawn == sorted(image.tobytes() for image in data.train.images)
    with pytest.raises(UserError, match=r"fraction of 0\.9 takes 22 of 24.*too few for 3 classes"):
        split_validation(data, fraction=0.9, seed=0)


def test_one_class_is_no_question(tmp_path: Path) -> None:
    zeros = {f"{split}_labels": np.zeros(24, np.int64) for split in ("train", "val", "test")}
    with pytest.raises(UserError, match="one class, '0'"):
        load_data(save(tmp_path / "set.npz", **zeros))


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "set.npz")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_data("~/set.npz").train) == 24


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 4, 4).contiguous()
    labels = torch.arange(10)

    still = Augmentation(shift=0.0)

    def order(seed: int, epoch: int) -> list[int]:
        drawn = list(epoch_batches(images, labels, batch_size=3, augmentation=still, mean=(0,), seed=seed, epoch=epoch))
        assert all(torch.equal(batch.pixels[:, 0, 0, 0].long(), batch.labels) for batch in drawn)
        return torch.cat([batch.labels for batch in drawn]).tolist()

    assert order(0, 0) == order(0, 0)
    assert len(order(0, 0)) == len(set(order(0, 0))) == 9
    assert order(0, 0) != order(0, 1) != order(1, 0)


def test_shift_moves_whole_pixels_over_a_repeated_border() -> None:
    image = torch.arange(25, dtype=torch.uint8).reshape(1, 1, 5, 5)
    padded = torch.nn.functional.pad(image.float(), (2, 2, 2, 2), mode="replicate")
    allowed = {tuple(padded[0, 0, y : y + 5, x : x + 5].flatten().tolist()) for y in range(5) for x in range(5)}
    seen = set()
    for epoch in range(300):
        (batch,) = epoch_batches(
            image, torch.zeros(1), batch_size=1, augmentation=Augmentation(shift=0.4), mean=(0,), seed=0, epoch=epoch
        )
        seen.add(tuple(batch.pixels.flatten().tolist()))
    assert seen == allowed


def test_pixels_have_mean_zero_and_deviation_one() -> None:
    train = load_data("digits").train
    images = Preprocessing.of(train)(to_tensors(train)[0])
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std().item() == pytest.approx(1, abs=1e-4)
