"""Batches of dense tasks: the same with any number of workers and ranks, and from any batch on."""

from __future__ import annotations

import os
import re
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")

from pycocotools.coco import COCO

from dense_sets import objects, write_coco, write_masks
from mpvg.data.dense.loaders import AskedSamples
from mpvg.data.large.order import epoch_order
from mpvg.data.large.workers import Draws
from mpvg.dense.measures import DetectionAP
from mpvg.errors import UserError
from mpvg.train.dense_data import DetectionData, SegmentationData
from mpvg.train.processes import check_equal_parts

SMALL: dict[type, dict[str, Any]] = {
    DetectionData: {"scales": [40, 56], "max_long": 80, "crop": False, "eval_scale": 48},
    SegmentationData: {"scale": 48, "crop_size": 32},
}
KINDS = list(SMALL)


def trainer(*, epoch: int = 0, batch: int = 0, rank: int = 0, world_size: int = 1) -> Any:
    """What data asks of Lightning's trainer."""
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=batch)))
    return SimpleNamespace(
        current_epoch=epoch,
        fit_loop=SimpleNamespace(epoch_loop=progress),
        accumulate_grad_batches=1,
        global_rank=rank,
        world_size=world_size,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )


def loaded(kind: Any, *, seed: int = 0, **options: Any) -> Any:
    data = kind(**{"workers": 0, **SMALL[kind], **options})
    data.load(seed=seed)
    data.trainer = trainer()
    return data


def epoch(data: Any, **at: int) -> list[Any]:
    data.trainer = trainer(**at)
    batches = list(data.train_dataloader())
    data.teardown("fit")
    return batches


def flat(value: Any) -> list[Any]:
    """All numbers of a batch, piece by piece."""
    if isinstance(value, dict):
        return flat(list(value.values()))
    if isinstance(value, list | tuple):
        return list(chain.from_iterable(map(flat, value)))
    return [np.asarray(value)]


def same(one: Any, other: Any) -> bool:
    pieces = flat(one), flat(other)
    return len(pieces[0]) == len(pieces[1]) and all(map(np.array_equal, *pieces))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_a_function_of_seed_epoch_and_place(kind: Any) -> None:
    data = loaded(kind, seed=3)
    batches = epoch(data, epoch=2)
    assert (len(batches), data.steps_an_epoch, len(data.train)) == (4, 4, 8)
    assert [batch.positions.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    if kind is DetectionData:
        order = [int(target["image_id"]) - 1 for batch in batches for target in batch.targets]
        assert order == epoch_order(8, seed=3, epoch=2).tolist()
    assert same(epoch(loaded(kind, seed=3), epoch=2, batch=2), batches[2:])
    assert same(epoch(loaded(kind, seed=3, workers=2), epoch=2, batch=1), batches[1:])
    for other in (epoch(loaded(kind, seed=4), epoch=2), epoch(data, epoch=1)):
        assert not same(other, batches)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_drawn_otherwise_at_each_place(kind: Any) -> None:
    data = loaded(kind)
    places = np.arange(8)
    asked = AskedSamples(data.train, data.train_transform(), data.collate, seed=0, replace=True)
    batch = asked.batch(Draws(0, places, places * 0), [])
    assert len({np.asarray(pixels).tobytes() for pixels in batch[0]}) > 3
    again = asked.batch(Draws(0, places[::-1], places * 0), [])
    assert all(map(torch.equal, batch[0], reversed(list(again[0]))))


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_share_each_batch_and_each_evaluated_image(kind: Any) -> None:
    data = loaded(kind, batch_size=4)
    whole, shares = epoch(data), [epoch(data, rank=rank, world_size=2) for rank in range(2)]
    for batch, one, other in zip(whole, *shares, strict=True):
        assert [one.positions.tolist(), other.positions.tolist()] == [
            batch.positions.tolist()[rank::2] for rank in range(2)
        ]
        first = [part[0] for part in batch[:2]], [part[1] for part in batch[:2]]
        assert same([part[0] for part in one[:2]], first[0])
        assert same([part[0] for part in other[:2]], first[1])
    seen = []
    for rank in range(3):
        data.trainer = trainer(rank=rank, world_size=3)
        seen += [position for batch in data.val_dataloader() for position in batch.positions.tolist()]
    assert seen == list(range(8))


def test_evaluated_objects_are_as_annotated_and_measure_one_when_found() -> None:
    data = loaded(DetectionData)
    measure = DetectionAP(data.images.category_ids)
    for batch in data.val_dataloader():
        (image,), (target,) = batch.images, batch.targets
        assert image.shape == (3, 48, 64)
        assert target["masks"].shape[1:] == target["size"] == (96, 128)
        found = {name: torch.tensor(target[name]) for name in ("boxes", "labels", "masks")}
        measure.update([{**found, "scores": torch.ones(len(target["labels"]))}], [target])
    numbers = measure.compute()
    assert float(numbers["box_ap"]) == float(numbers["mask_ap"]) == 1


def test_evaluated_class_maps_have_the_size_of_the_image(tmp_path: Path) -> None:
    write_masks(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    data = loaded(SegmentationData, source=str(tmp_path), batch_size=64)
    assert (data.images_a_step, data.watches_test, data.images.category_ids) == (3, True, (0, 1, 2))
    shapes = [(tuple(batch.pixels.shape), tuple(batch.masks.shape)) for batch in data.test_dataloader()]
    assert shapes[1] == ((1, 3, 64, 96), (1, 21, 30))


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_cannot_be_read_are_named_or_left_out(tmp_path: Path, workers: int) -> None:
    write_coco(tmp_path)
    file = tmp_path / "images/20.png"
    file.write_bytes(file.read_bytes()[:200])
    options: dict[str, Any] = {"source": str(tmp_path), "batch_size": 3, "workers": workers}
    data = loaded(DetectionData, **options)
    with pytest.raises(UserError, match=r"images/20\.png cannot be read as an image .*--skip-bad-images"):
        epoch(data)
    data = loaded(DetectionData, **options, skip_bad_images=True)
    (batch,) = epoch(data)
    assert sorted(int(target["image_id"]) for target in batch.targets) == [10, 30, 30]  # the next in its place
    data.trainer = trainer()
    assert [batch.targets[0]["image_id"] for batch in data.val_dataloader()] == [10, 30]
    assert [told.partition(":")[0] for told in data.images.skipped] == [str(file)]


def test_an_image_without_objects_is_a_batch(tmp_path: Path) -> None:
    write_coco(tmp_path, objects(annotations=objects()["annotations"][:1]))
    (batch,) = epoch(loaded(DetectionData, source=str(tmp_path), batch_size=3))
    shapes = {int(target["image_id"]): tuple(target["boxes"].shape) for target in batch.targets}
    assert shapes == {10: (1, 4), 20: (0, 4), 30: (0, 4)}
    masks = {tuple(target["masks"].shape) for target in batch.targets if int(target["image_id"]) != 10}
    assert masks == {(0, *image.shape[1:]) for image, t in zip(*batch[:2], strict=True) if int(t["image_id"]) != 10}


def test_annotations_can_be_named(tmp_path: Path) -> None:
    write_coco(tmp_path, name="boxes.json", images="pictures")
    named: dict[str, Any] = {
        "train_annotations": str(tmp_path / "boxes.json"),
        "train_images": str(tmp_path / "pictures"),
    }
    data = loaded(DetectionData, **named, min_side=3, limit=2)
    assert (len(data.train), data.watches_test) == (2, True)
    again = DetectionData(**{name: value for name, value in data.arguments().items() if name != "seed"})
    assert again.load().fingerprint() == data.images.fingerprint()


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "batch": (DetectionData, {"batch_size": 0}, "batch_size 0: name a number of images"),
    "workers": (DetectionData, {"workers": -1}, "workers -1: name a number of processes"),
    "scales": (DetectionData, {"scales": []}, r"scales \[\]: name short sides"),
    "long": (DetectionData, {"max_long": 0}, "max_long 0: name a number of pixels"),
    "half": (DetectionData, {"train_images": "x"}, "train_annotations None and train_images .*x go together"),
    "side": (DetectionData, {"min_side": -1}, "min_side -1: name a number of pixels"),
    "limit": (SegmentationData, {"limit": 0}, "limit 0: name a number of images"),
    "ratio": (SegmentationData, {"ratio_range": (2, 1)}, r"ratio_range \(2, 1\): name two parts"),
    "crop": (SegmentationData, {"crop_size": 0}, "crop_size 0: name a number of pixels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_out_of_range_are_refused(name: str) -> None:
    kind, options, told = WRONG[name]
    with pytest.raises(UserError, match=told):
        kind(**options)


def test_batches_that_cannot_be_shared_are_refused() -> None:
    data = loaded(DetectionData, batch_size=3)
    with pytest.raises(UserError, match=r"batch_size 3 over 2 processes .*--data\.batch_size 2 say"):
        check_equal_parts(data.images_a_step, 2)
    with pytest.raises(UserError, match="accumulate_grad_batches 5 times 2 images a batch are more than the 8"):
        DetectionData(batch_size=2).load(accumulated=5)
    data.trainer = trainer(world_size=9)
    with pytest.raises(UserError, match="8 images to evaluate for 9 processes"):
        data.val_dataloader()


def test_the_code_in_the_document_runs() -> None:
    text = (Path(__file__).parents[1] / "docs/dense.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", text, re.S)  # the first is of the backbone
    found: dict[str, Any] = {}
    exec(compile(code, "dense.md", "exec"), found)
    assert len(found["images"]) == 2
    assert found["positions"].tolist() == [6, 7]


@pytest.mark.skipif("MPVG_DATA" not in os.environ, reason="needs coco128_seg in $MPVG_DATA")
def test_photographs_lie_under_their_objects() -> None:
    source = Path(os.environ["MPVG_DATA"]) / "coco128_seg"
    data = loaded(DetectionData, source=str(source))
    assert (len(data.train), len(data.images.classes), data.images.remarks) == (128, 80, ())
    coco = COCO(str(source / "instances.json"))
    for index in range(len(data.train)):
        image, found = data.train.sample(index)
        expected = coco.loadAnns(coco.getAnnIds(found.image_id))
        assert (image.height, image.width) == found.size
        assert [data.images.category_ids[label - 1] for label in found.labels] == [
            one["category_id"] for one in expected
        ]
        assert all(np.array_equal(mask, coco.annToMask(one)) for mask, one in zip(found.masks, expected, strict=True))
