"""What dense predictions are measured by: COCO's average precision, and the mean intersection over union."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as rle_of
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchmetrics import Metric

from mpvg.data.dense.labels import IGNORED

_KINDS = {"box": "bbox", "mask": "segm"}
_NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # as COCOeval orders them


class DetectionAP(Metric):
    """COCO's average precision of boxes and of masks, as pycocotools computes it.

    Its state are the objects themselves, found and annotated, as text in bytes: that of several processes is joined. Of
    an image that two processes have seen, one account counts.

    Args:
        category_ids: Ids of the classes in the set's own numbers, by label from 1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, category_ids: Sequence[int]) -> None:
        super().__init__()
        self.category_ids = tuple(category_ids)
        self.images: list[Tensor]
        self.add_state("images", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> None:
        """Take the objects that were found in some images, and those that are in them.

        Args:
            predictions: Of each image boxes (N, 4) as x1, y1, x2, y2, scores (N,), labels (N,) from 1 and masks
                (N, H, W) of zeros and ones, all in pixels of the image as it is stored.
            targets: Of each image image_id, size (H, W), boxes, labels, masks, area (N,) and iscrowd (N,), likewise.
        """
        for found, target in zip(predictions, targets, strict=True):
            image = int(target["image_id"])
            truth = _as_annotations(target, image, self.category_ids)
            for annotation, area, crowd in zip(truth, target["area"], target["iscrowd"], strict=True):
                annotation.update(area=float(area), iscrowd=int(crowd))
            height, width = (int(side) for side in target["size"])
            seen = {
                "image": {"id": image, "height": height, "width": width},
                "truth": truth,
                "found": _results(found, image, self.category_ids),
            }
            line = bytearray(json.dumps(seen, separators=(",", ":")).encode() + b"\n")
            self.images.append(torch.frombuffer(line, dtype=torch.uint8).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return the average precisions.

        Returns:
            box_ap, box_ap50, box_ap75, box_ap_small, box_ap_medium, box_ap_large, and mask_ likewise, from 0 to 1; -1
            where no object is of that kind, as in pycocotools.
        """
        images = self._seen()
        return {
            f"{name}_{number}": torch.tensor(value, device=self.device)
            for name, kind in _KINDS.items()
            for number, value in zip(_NUMBERS, _evaluate(images, self.category_ids, kind), strict=True)
        }

    def results(self) -> list[dict[str, Any]]:
        """Return what was found in all images, as `to_coco_results` does."""
        return [result for image in self._seen() for result in image["found"]]

    def _seen(self) -> list[dict[str, Any]]:
        lines = b"".join(part.cpu().numpy().tobytes() for part in _as_list(self.images)).splitlines()
        by_id = {image["image"]["id"]: image for image in map(json.loads, lines)}
        return [by_id[image] for image in sorted(by_id)]


class MeanIoU(Metric):
    """The mean over classes of intersection over union, and the part of pixels that are right.

    Classes that are neither in the masks nor predicted anywhere are left out of the mean. Pixels whose class is to be
    ignored count for nothing.

    Args:
        num_classes: How many classes there are.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.confusion: Tensor
        empty = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", default=empty, dist_reduce_fx="sum")

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Take some class maps.

        Args:
            predictions: Classes (...) from 0 to below their number.
            masks: What they should be, (...); 255 where that is to be ignored.
        """
        assert predictions.shape == masks.shape, (predictions.shape, masks.shape)
        counted = masks != IGNORED
        pairs = masks[counted] * self.num_classes + predictions[counted]
        counts = torch.bincount(pairs, minlength=self.num_classes**2)
        self.confusion += counts.reshape(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """Return miou and pixel_accuracy, from 0 to 1; NaN where no pixel was counted."""
        right = self.confusion.diagonal().sum().double()
        return {
            "miou": self.class_iou().nanmean().float(),
            "pixel_accuracy": (right / self.confusion.sum()).float(),
        }

    def class_iou(self) -> Tensor:
        """Return each class's intersection over union (K,) in float64; NaN where it is neither there nor predicted."""
        both = self.confusion.diagonal().double()
        either = self.confusion.sum(dim=0) + self.confusion.sum(dim=1) - self.confusion.diagonal()
        return both / either


def to_coco_results(
    predictions: Iterable[Mapping[str, Any]], image_ids: Iterable[int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Return what was found in some images as COCO's result files have it.

    The file is for boxes and masks at once; pycocotools takes the areas of both from the boxes then, which moves AP of
    small, medium and large masks: leave out "bbox" for those.

    Args:
        predictions: Of each image, as `DetectionAP.update` takes them.
        image_ids: Ids of the images.
        category_ids: Ids of the classes in the set's own numbers, by label from 1.

    Returns:
        Of each object image_id, category_id, bbox (x, y, width, height), score and segmentation, run-length encoded.
    """
    pairs = zip(predictions, image_ids, strict=True)
    return [result for found, image in pairs for result in _results(found, image, category_ids)]


def encoded(masks: Any) -> list[dict[str, Any]]:
    """Return masks (N, H, W) of zeros and ones as COCO's run-length encoding, with text that JSON takes."""
    planes = np.asfortranarray(_array(masks).astype(np.uint8).transpose(1, 2, 0))
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in rle_of.encode(planes)]


def _results(found: Mapping[str, Any], image: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    objects = _as_annotations(found, image, category_ids)
    scores = _array(found["scores"]).tolist()
    return [{**one, "score": score} for one, score in zip(objects, scores, strict=True)]


def _as_annotations(objects: Mapping[str, Any], image: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    corners = _array(objects["boxes"]).astype(np.float64).reshape(-1, 4)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
    labels = _array(objects["labels"]).tolist()
    return [
        {"image_id": image, "category_id": category_ids[label - 1], "bbox": box, "segmentation": mask}
        for box, label, mask in zip(boxes, labels, encoded(objects["masks"]), strict=True)
    ]


def _evaluate(images: Sequence[dict[str, Any]], category_ids: Sequence[int], kind: str) -> list[float]:
    with redirect_stdout(io.StringIO()):  # of what they do, step by step
        truth = _coco(images, category_ids, "truth", kind)
        evaluation = COCOeval(truth, _coco(images, category_ids, "found", kind), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(number) for number in evaluation.stats[: len(_NUMBERS)]]


def _coco(images: Sequence[dict[str, Any]], category_ids: Sequence[int], which: str, kind: str) -> COCO:
    """Return pycocotools' index of the objects, numbered anew: it takes an object 0 for none."""
    objects: list[dict[str, Any]] = [dict(one) for image in images for one in image[which]]
    for number, one in enumerate(objects, start=1):
        one["id"] = number
        if which == "found":
            area = one["bbox"][2] * one["bbox"][3] if kind == "bbox" else float(rle_of.area(one["segmentation"]))
            one.update(area=area, iscrowd=0)
    coco = COCO()
    coco.dataset = {
        "images": [image["image"] for image in images],
        "categories": [{"id": category} for category in category_ids],
        "annotations": objects,
    }
    coco.createIndex()
    return coco


def _as_list(state: Any) -> list[Tensor]:
    return state if isinstance(state, list) else [state]  # one tensor once processes have joined theirs


def _array(values: Any) -> npt.NDArray[Any]:
    return np.asarray(values.cpu() if isinstance(values, Tensor) else values)
