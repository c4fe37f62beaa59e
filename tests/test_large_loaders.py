"""Batches are the same with any number of workers and ranks, and from any batch on, whatever the container."""

from __future__ import annotations

import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpvg.data.augmentation import Augmentation
from mpvg.data.batch import Batch
from mpvg.data.large import (
    EvalLoader,
    LargeData,
    TrainLoader,
    epoch_order,
    eval_transform,
    large_from_memory,
    open_large,
)
from mpvg.data.large.workers import Draws
from mpvg.data.sources import load_data
from mpvg.data.splits import ImageData, Split
from mpvg.errors import UserError
from test_large import OPENED, folder

SIZE = (12, 16)
AUGMENTATION = Augmentation(crop_scale=(0.3, 1), flip=0.5, rand_augment="rand-m9-mstd0.5-inc1")
KINDS = list(OPENED)


def train(data: LargeData, **changes: Any) -> TrainLoader:
    options: dict[str, Any] = {
        "augmentation": AUGMENTATION, "size": SIZE, "mean": (0.5, 0.5, 0.5), "batch_size": 8, "seed": 0,
    }  # fmt: skip
    return TrainLoader(data.train, **{**options, **changes})


def epoch(loader: TrainLoader, number: int = 0, first_batch: int = 0) -> list[Batch]:
    loader.set_epoch(number, first_batch)
    return list(loader)


def same(found: list[Batch], expected: list[Batch]) -> bool:
    assert len(found) == len(expected)
    return all(
        torch.equal(one, other)
        for ours, theirs in zip(found, expected, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )


def numbered(count: int, classes: int = 2, side: int = 4) -> LargeData:
    """Images that are all of one value, their number: for what must be told apart without augmentation."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(side, 1).repeat(side, 2)
    split = Split(images, np.arange(count) % classes)
    return large_from_memory(ImageData("n", "n.", tuple("ab"[:classes]), split, None, split))


def test_an_epoch_is_the_order_dealt_out_in_batches() -> None:
    loader = train(numbered(30), augmentation=Augmentation(), batch_size=8, seed=7)
    assert len(loader) == loader.epoch_batches == 3
    batches = epoch(loader, 4)
    order = epoch_order(30, seed=7, epoch=4)[:24]
    for number, batch in enumerate(batches):
        assert (batch.pixels.dtype, batch.pixels.shape) == (torch.uint8, (8, 3, *SIZE))
        rows = order[8 * number : 8 * number + 8]
        assert batch.pixels[:, 0, 0, 0].tolist() == rows.tolist()
        assert batch.labels.tolist() == (rows % 2).tolist()
        assert batch.positions.tolist() == list(range(8 * number, 8 * number + 8))
    assert batches[0].labels.dtype == batches[0].positions.dtype == torch.int64


def test_augmentation_is_a_function_of_seed_epoch_and_place(tmp_path: Path) -> None:
    data = OPENED["folder"](tmp_path / "set")

    def drawn(index: int, *, seed: int = 0, epoch: int = 0, place: int = 0, before: int = 0) -> bytes:
        asked = Draws(epoch, np.array([90] * before + [place]), np.array([8] * before + [index]))
        done = train(data, seed=seed).images[asked]
        assert not isinstance(done, UserError)
        return bytes(done.batch.pixels[-1].numpy())

    assert drawn(5) == drawn(5) == drawn(5, before=2)
    assert len({drawn(5), drawn(5, seed=1), drawn(5, epoch=1), drawn(5, place=1), drawn(6)}) == 5


def test_the_example_in_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder(tmp_path / "my_images").parent)
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    found: dict[str, Any] = {}
    exec(compile(code, "data.md", "exec"), found)
    assert found["pixels"].shape == (1, 3, 32, 32)  # the last of nine


@pytest.mark.skipif("MPVG_DATA" not in os.environ, reason="needs cifar100.npz and cifar100-png in $MPVG_DATA")
def test_cifar100_as_folder_and_in_memory() -> None:
    root = Path(os.environ["MPVG_DATA"])
    folders, arrays = open_large(str(root / "cifar100-png")), load_data(str(root / "cifar100" / "cifar100.npz"))
    wrapped = large_from_memory(arrays)
    assert len(folders.train) == len(wrapped.train) == 50_000
    assert len(folders.classes) == len(wrapped.classes) == 100
    for split, array in ((folders.train, arrays.train), (folders.test, arrays.test)):
        assert split.labels is not None
        assert np.bincount(split.labels).tolist() == np.bincount(array.labels).tolist()
    known = {array.tobytes() for array in arrays.test.images}
    assert all(np.asarray(folders.test.read(index)).tobytes() in known for index in range(0, 10_000, 100))
    recipe = Augmentation(padding=28, flip=0.5, interpolation="bilinear")
    loader = train(wrapped, augmentation=recipe, size=(224, 224), batch_size=64, workers=2)
    loader.set_epoch(0, loader.epoch_batches - 1)
    (batch,) = loader
    assert batch.pixels.shape == (64, 3, 224, 224)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_and_resuming(tmp_path: Path, kind: str) -> None:
    """Epochs of one loader, resumed and left, against those of another: for streams of as many workers."""
    data = OPENED[kind](tmp_path / "set")
    alone = train(data)
    whole = {number: epoch(alone, number) for number in (0, 1)}
    assert not same(whole[0], whole[1])
    assert len(whole[0]) == 5
    for first in (0, 1, 3, 5):
        alone.set_epoch(1, first)
        assert len(alone) == 5 - first
        assert same(list(alone), whole[1][first:])
    pickle.loads(pickle.dumps(alone.images))  # as workers that are spawned get it
    with_workers = train(data, workers=2)
    found = {number: epoch(with_workers, number) for number in (0, 1)}
    assert all(same(found[number], whole[number]) for number in found) is not data.train.streamed
    with_workers.set_epoch(0)
    next(iter(with_workers))  # and left
    for first in (1, 2, 3):
        assert same(epoch(with_workers, 0, first), found[0][first:])
    images = torch.cat([batch.labels for batch in found[0]])
    assert set(images.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one(tmp_path: Path, kind: str) -> None:
    data = OPENED[kind](tmp_path / "set")
    ranks = [epoch(train(data, rank=rank, world_size=2), 1) for rank in range(2)]
    assert all(len(batch.labels) == 4 for batches in ranks for batch in batches)
    joined = [
        Batch(*(torch.stack(pair, dim=1).flatten(0, 1) for pair in zip(first, second, strict=True)))
        for first, second in zip(*ranks, strict=True)
    ]
    one = epoch(train(data), 1)
    for whole, expected in zip(joined, one, strict=True):
        assert torch.equal(whole.positions, expected.positions)
    assert same(joined, one) is not data.train.streamed


def test_streams_read_each_image_once(tmp_path: Path) -> None:
    """Over 2 ranks of 2 workers; an image is known by its corner, as it is neither cropped nor turned."""
    data = OPENED["streamed"](tmp_path / "set")
    corners = []
    for rank in range(2):
        loader = train(
            data, augmentation=Augmentation(), size=(20, 24), batch_size=4, rank=rank, world_size=2, workers=2
        )
        for batch in epoch(loader):
            corners += batch.pixels[:, :2, 0, 0].tolist()
    assert len(corners) == 40
    assert len({tuple(corner) for corner in corners}) >= 36  # readers with fewer than ten images begin again


def test_repeated_augmentation_draws_copies_into_one_batch() -> None:
    settings = Augmentation(repeats=3, flip=0.5, crop_scale=(0.1, 1))
    loader = train(numbered(300 - 45), augmentation=settings, batch_size=24)
    assert loader.epoch_batches == 255 // 24
    ramp = np.random.default_rng(0).integers(0, 256, (260, 30, 30, 3), dtype=np.uint8)
    split = Split(ramp, np.arange(260))
    data = large_from_memory(ImageData("n", "n.", tuple(map(str, range(260))), split, None, split))
    loader = train(data, augmentation=settings, batch_size=24)
    assert loader.epoch_batches == 256 // 24
    for batch in epoch(loader):
        triples = batch.labels.reshape(8, 3)
        assert (triples == triples[:, :1]).all()
        assert len(triples[:, 0].unique()) == 8
        drawn = batch.pixels.reshape(8, 3, -1)
        assert not (drawn[:, 0] == drawn[:, 1]).all(dim=1).any()  # each copy is drawn anew


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_testing_meets_every_image_once(tmp_path: Path, kind: str, workers: int) -> None:
    data = OPENED[kind](tmp_path / "set")
    loaders = [
        EvalLoader(
            data.test, size=SIZE, crop=0.9, interpolation="bicubic", batch_size=2, rank=rank, world_size=2,
            workers=workers,
        )
        for rank in range(2)
    ]  # fmt: skip
    batches = [list(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(found) for found in batches] == [3, 3]
    positions = torch.cat([batch.positions for found in batches for batch in found])
    assert sorted(positions.tolist()) == list(range(9))
    labels = torch.cat([batch.labels for found in batches for batch in found])
    assert data.test.labels is not None
    assert labels.tolist() == data.test.labels[positions].tolist()
    transform = eval_transform(SIZE, crop=0.9, interpolation="bicubic")
    for batch in batches[1]:
        for pixels, position in zip(batch.pixels, batch.positions.tolist(), strict=True):
            assert torch.equal(pixels, transform(data.test.read(position)))
    assert same(list(loaders[0]), batches[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_generators_of_this_process_are_left_alone(workers: int) -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), np.random.random(), torch.rand(3)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    loader = train(numbered(30), workers=workers)
    found = [epoch(loader, number) for number in range(2)]
    assert (random.random(), np.random.random()) == expected[:2]
    assert torch.equal(torch.rand(3), expected[2])
    random.seed(2)
    torch.manual_seed(2)
    assert same(epoch(train(numbered(30))), found[0])  # and do not matter


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 31}, "batch size 31 is more than the 30 images"),
        ({"batch_size": 0}, "batch size 0 over 1 processes"),
        ({"batch_size": 9, "world_size": 2}, "batch size 9 over 2 processes: use a multiple"),
        ({"workers": -1}, "workers -1: use 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 processes: ranks count from 0"),
        ({"seed": -1}, "seed -1: use a number from 0"),
    ],
)
def test_bad_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(numbered(30), **changes)
    with pytest.raises(UserError, match="batch 4 of epoch 2: it has 3 batches"):
        train(numbered(30)).set_epoch(2, 4)
    with pytest.raises(UserError, match="batch size 0: use 1"):
        EvalLoader(numbered(30).test, size=SIZE, crop=1, interpolation="bicubic", batch_size=0)
