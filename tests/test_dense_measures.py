"""Average precision equals pycocotools' on files of annotations and results, mean IoU an independent count."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("pycocotools")

from pycocotools import mask as rle_of
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mpvg.dense.measures import DetectionAP, MeanIoU, to_coco_results
from mpvg.dense.sliding import slide

CATEGORIES = (0, 3, 17)  # with gaps, and a zero
SIZE = (60, 80)
NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def annotated(images: int = 12) -> dict[str, Any]:
    """Ellipses in COCO's format: of small, medium and large areas that are not those of their masks, and crowds."""
    random = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    for image in range(images):
        for _ in range(int(random.integers(0, 6))):
            mask = ellipse(random)
            rle = rle_of.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": 7 * image + 3,
                    "category_id": int(random.choice(CATEGORIES)),
                    "bbox": (rle_of.toBbox(rle) + random.uniform(0, 0.3, 4)).round(2).tolist(),
                    "area": float(random.choice([300, 3000, 30000])),
                    "iscrowd": int(random.random() < 0.15),
                    "segmentation": {"size": list(SIZE), "counts": rle["counts"].decode()},
                }
            )
    return {
        "images": [{"id": 7 * image + 3, "height": SIZE[0], "width": SIZE[1]} for image in range(images)],
        "categories": [{"id": category, "name": str(category)} for category in CATEGORIES],
        "annotations": annotations,
    }


def ellipse(random: np.random.Generator) -> Any:
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    y, x, height, width = random.uniform((10, 10, 2, 2), (50, 70, 25, 30))
    mask = ((ys - y) / height) ** 2 + ((xs - x) / width) ** 2 < 1
    mask[int(y), int(x)] = True
    return mask.astype(np.uint8)


def target(content: dict[str, Any], image: int) -> dict[str, Any]:
    own = [one for one in content["annotations"] if one["image_id"] == image]
    boxes = np.array([one["bbox"] for one in own], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [rle_of.decode(one["segmentation"]) for one in own]
    return {
        "image_id": image,
        "size": SIZE,
        "boxes": boxes,
        "labels": np.array([CATEGORIES.index(one["category_id"]) + 1 for one in own], np.int64),
        "masks": np.array(masks, np.uint8).reshape(-1, *SIZE),
        "area": np.array([one["area"] for one in own]),
        "iscrowd": np.array([one["iscrowd"] for one in own], np.int64),
    }


def found(true: dict[str, Any], random: np.random.Generator) -> dict[str, Tensor]:
    """What a detector might find: objects a little moved, some of the wrong class, and some that are not there."""
    masks, labels = [], []
    for mask, label in zip(true["masks"], true["labels"], strict=True):
        for _ in range(int(random.integers(0, 3))):
            masks.append(np.roll(mask, random.integers(-3, 4, 2).tolist(), (0, 1)))
            labels.append(label if random.random() < 0.8 else 1)
    for _ in range(int(random.integers(2, 6))):
        masks.append(ellipse(random) * (random.random(SIZE) < 0.2))  # of much less area than its box
        labels.append(int(random.integers(1, 4)))
    boxes = [rle_of.toBbox(rle_of.encode(np.asfortranarray(mask))) + random.normal(0, 0.7, 4) for mask in masks]
    corners = np.array(boxes).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return {
        "boxes": torch.tensor(corners, dtype=torch.float32),
        "scores": torch.tensor(random.random(len(masks)).round(2), dtype=torch.float32),  # some the same
        "labels": torch.tensor(np.array(labels, np.int64)),
        "masks": torch.tensor(np.array(masks, np.uint8).reshape(-1, *SIZE)).bool(),
    }


def pycocotools_on(path: Path, content: dict[str, Any], results: list[dict[str, Any]], kind: str) -> list[float]:
    """COCOeval as its manual says: of files, one of boxes or of masks."""
    other = "segmentation" if kind == "bbox" else "bbox"
    (path / "truth.json").write_text(json.dumps(content))
    (path / "found.json").write_text(json.dumps([{k: v for k, v in one.items() if k != other} for one in results]))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path / "truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(path / "found.json")), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats[:6])


def pairs(content: dict[str, Any]) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
    random = np.random.default_rng(1)
    targets = [target(content, image["id"]) for image in content["images"]]
    return [(found(true, random), true) for true in targets]


def filled(seen: list[tuple[dict[str, Tensor], dict[str, Any]]]) -> DetectionAP:
    measure = DetectionAP(CATEGORIES)
    for one in seen:
        measure.update([one[0]], [one[1]])
    return measure


def joined(measure: Any, theirs: Tensor) -> Any:
    """What a process computes that gathers its own state and another's."""
    measure.dist_sync_fn = lambda own, group: [own, theirs]
    measure.distributed_available_fn = lambda: True
    return measure.compute()


def test_average_precision_is_that_of_pycocotools(tmp_path: Path) -> None:
    content = annotated()
    assert {one["iscrowd"] for one in content["annotations"]} == {0, 1}
    seen = pairs(content)
    measure = filled(seen[::-1])  # images in another order than that of their ids
    numbers = measure.compute()
    results = to_coco_results([one for one, _ in seen], [true["image_id"] for _, true in seen], CATEGORIES)
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        expected = pycocotools_on(tmp_path, content, results, kind)
        ours = [float(numbers[f"{name}_{number}"]) for number in NUMBERS]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
        assert 0.02 < ours[0] < 0.9
        assert len(set(ours)) == 6
    assert sorted(map(json.dumps, measure.results())) == sorted(map(json.dumps, results))


@pytest.mark.parametrize("change", ["area", "iscrowd"])
def test_areas_and_crowds_count(change: str) -> None:
    seen = pairs(annotated())
    before = filled(seen).compute()
    for _, true in seen:
        true[change] = np.zeros_like(true[change])
    after = filled(seen).compute()
    assert any(abs(float(after[name] - before[name])) > 1e-4 for name in before)


def test_nothing_found_and_nothing_there() -> None:
    seen = pairs(annotated())
    nothing = {name: values[:0] for name, values in seen[0][0].items()}
    numbers = filled([(nothing, true) for _, true in seen]).compute()
    assert float(numbers["box_ap"]) == float(numbers["mask_ap50"]) == 0
    empty = {name: value[:0] if isinstance(value, np.ndarray) else value for name, value in seen[0][1].items()}
    assert float(filled([(seen[0][0], empty)]).compute()["box_ap"]) == -1


def test_processes_join_what_they_found() -> None:
    seen = pairs(annotated())
    one, other = filled(seen[:5]), filled([*seen[4:]])  # one image twice
    theirs = torch.cat(other.images)
    assert joined(one, theirs) == filled(seen).compute()


def test_mean_iou_is_an_independent_count() -> None:
    random = np.random.default_rng(0)
    masks, predictions = random.integers(0, 4, (3, 20, 30)), random.integers(0, 3, (3, 20, 30))
    masks[random.random(masks.shape) < 0.2] = 255
    masks[masks == 3] = 4  # class 3 is nowhere, class 4 never predicted
    measure = MeanIoU(6)
    for mask, prediction in zip(masks, predictions, strict=True):
        measure.update(torch.tensor(prediction), torch.tensor(mask))
    ious = []
    for number in (0, 1, 2, 4):
        in_mask, in_prediction = masks == number, (predictions == number) & (masks != 255)
        ious.append((in_mask & in_prediction).sum() / (in_mask | in_prediction).sum())
    numbers = measure.compute()
    assert float(numbers["miou"]) == pytest.approx(np.mean(ious), abs=1e-7)
    assert float(numbers["pixel_accuracy"]) == pytest.approx((masks == predictions)[masks != 255].mean(), abs=1e-7)
    assert measure.class_iou().isnan().tolist() == [False, False, False, True, False, True]
    halves = [MeanIoU(6), MeanIoU(6)]
    halves[0].update(torch.tensor(predictions[:1]), torch.tensor(masks[:1]))
    halves[1].update(torch.tensor(predictions[1:]), torch.tensor(masks[1:]))
    assert joined(halves[0], halves[1].confusion) == numbers


@pytest.mark.parametrize(("size", "crop", "stride"), [((9, 14), 5, 3), ((5, 5), 5, 5), ((3, 11), 6, 4), ((1, 7), 4, 1)])
def test_sliding_averages_over_the_windows_that_see_a_pixel(size: tuple[int, int], crop: int, stride: int) -> None:
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    calls = 0

    def model(window: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.stack([window.sum(dim=1) + calls, window[:, 0] * calls], dim=1)  # differs from call to call

    logits = slide(model, image, crop=crop, stride=stride, num_classes=2)
    total, seen, call = np.zeros((2, 2, *size)), np.zeros(size), 0
    starts = [sorted({min(start, max(side - crop, 0)) for start in range(0, side, stride)}) for side in size]
    for top in starts[0]:
        for left in starts[1]:
            call += 1
            for y in range(top, min(top + crop, size[0])):
                for x in range(left, min(left + crop, size[1])):
                    total[:, 0, y, x] += image[:, :, y, x].sum(dim=1).numpy() + call
                    total[:, 1, y, x] += image[:, 0, y, x].numpy() * call
                    seen[y, x] += 1
    assert calls == call
    np.testing.assert_allclose(logits.numpy(), total / seen, rtol=1e-12)
