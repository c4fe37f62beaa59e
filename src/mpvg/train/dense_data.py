"""Images with objects or class maps as Lightning wants them."""

from __future__ import annotations

from pathlib import Path

from mpvg.data.dense.coco import GENERATED, Choice, Part, open_coco
from mpvg.data.dense.masks import open_masks
from mpvg.data.dense.split import DenseData
from mpvg.data.dense.transforms_detection import (
    DetectionAugmentation,
    DetectionBatch,
    DetectionEvaluation,
    detection_batch,
)
from mpvg.data.dense.transforms_segmentation import (
    LONGER,
    SegmentationAugmentation,
    SegmentationBatch,
    SegmentationEvaluation,
    segmentation_batch,
)
from mpvg.data.sources import absolute_source
from mpvg.errors import UserError
from mpvg.train.dense_loading import DenseDataModule

_SCALES = tuple(range(480, 801, 32))
_PARTS = ("train_annotations", "train_images", "val_annotations", "val_images")


class DetectionData(DenseDataModule[DetectionBatch]):
    """Images with objects, in COCO's format.

    Args:
        source: A folder with annotations/instances_train2017.json and train2017/ (also without the year, and of val),
            or one with instances.json and images/, which are trained and evaluated on alike; or "generated", shapes to
            try a command on.
        batch_size: Images a step, over all devices; of accumulate_grad_batches such batches where those are named.
        repeats: How often an epoch has each training image, for sets that are small.
        train_annotations: A JSON file to train on, in place of the source's.
        train_images: The folder of its images.
        val_annotations: A JSON file to evaluate on; by default that to train on where that is named.
        val_images: The folder of its images.
        scales: Short sides of training images to draw from, in pixels; by default 480 to 800 in steps of 32.
        max_long: What the long side of training and evaluated images may have at most.
        crop: Crop half of the training images, to sides of 384 to 600 of a short side of 400, 500 or 600, and none to
            more than 1024.
        eval_scale: Short side of evaluated images.
        keeps_empty: Train on images without objects too.
        min_side: Pixels that the sides of an object's box have at least in an evaluated image; smaller objects are left
            out of training and evaluation.
        limit: How many images to take, of those with objects and in ascending order of their ids; all by default.
        skip_bad_images: Leave out images that cannot be read, and objects of images that are not listed.
        workers: Processes that read and augment images while the model trains, at most one a core; 0 reads them in the
            training's own.
    """

    collate = staticmethod(detection_batch)
    of_card = (
        *DenseDataModule.of_card, *_PARTS, "scales", "max_long", "crop", "eval_scale", "keeps_empty", "min_side",
        "limit",
    )  # fmt: skip

    def __init__(
        self,
        source: str = GENERATED,
        batch_size: int = 2,
        repeats: int = 1,
        train_annotations: str | None = None,
        train_images: str | None = None,
        val_annotations: str | None = None,
        val_images: str | None = None,
        scales: list[int] | None = None,
        max_long: int = 1333,
        crop: bool = True,
        eval_scale: int = 800,
        keeps_empty: bool = True,
        min_side: int = 0,
        limit: int | None = None,
        skip_bad_images: bool = False,
        workers: int = 4,
    ) -> None:
        super().__init__(
            source=source, batch_size=batch_size, repeats=repeats, skip_bad_images=skip_bad_images, workers=workers
        )
        for name, files in (
            ("train", (train_annotations, train_images)),
            ("val", (val_annotations, val_images)),
        ):
            if (files[0] is None) != (files[1] is None):
                raise UserError(f"{name}_annotations {files[0]} and {name}_images {files[1]} go together: name both.")
        self.scales = list(_SCALES) if scales is None else scales
        if not self.scales or min(self.scales) < 1:
            raise UserError(f"scales {self.scales}: name short sides in pixels, such as [480, 640, 800].")
        _check_sides(max_long=max_long, eval_scale=eval_scale)
        _check_choice(min_side, limit)
        self.train_annotations, self.train_images = _absolute(train_annotations), _absolute(train_images)
        self.val_annotations, self.val_images = _absolute(val_annotations), _absolute(val_images)
        self.max_long, self.crop, self.eval_scale = max_long, crop, eval_scale
        self.keeps_empty, self.min_side, self.limit = keeps_empty, min_side, limit

    def open(self) -> DenseData:
        choice = Choice(
            short=self.eval_scale,
            long=self.max_long,
            min_side=self.min_side,
            limit=self.limit,
            keeps_empty=self.keeps_empty,
            skip_bad_images=self.skip_bad_images,
        )
        train = _part(self.train_annotations, self.train_images)
        return open_coco(self.source, train=train, val=_part(self.val_annotations, self.val_images), choice=choice)

    def train_transform(self) -> DetectionAugmentation:
        return DetectionAugmentation(scales=tuple(self.scales), max_long=self.max_long, crop=self.crop)

    def eval_transform(self) -> DetectionEvaluation:
        return DetectionEvaluation(scale=self.eval_scale, max_long=self.max_long)


class SegmentationData(DenseDataModule[SegmentationBatch]):
    """Images with a class for each pixel.

    Args:
        source: A folder with ADE20K's layout; one with train/images, train/masks, maybe val/ and test/ likewise, and
            classes.txt; one with objects in COCO's format, whose outlines are filled; or "generated", shapes to try a
            command on.
        batch_size: Images a step, over all devices; of accumulate_grad_batches such batches where those are named.
        repeats: How often an epoch has each training image, for sets that are small.
        scale: Short side of images in pixels, the long one at most 4 times as long: before a part of it is drawn in
            training, and before both are rounded up to multiples of 32 in evaluation.
        ratio_range: Smallest and largest part of the scale in training.
        crop_size: Side of the crops in training.
        ignored: Ids of masks without a class, beside 255, and ADE20K's 0.
        background: Of outlines, make what is outside of them a class, the first; it is ignored by default.
        min_side: Of outlines, as in detection: pixels of smaller objects are ignored.
        limit: Of outlines, how many images to take, of those with objects and in ascending order of their ids.
        skip_bad_images: Leave out images that cannot be read, and say which.
        workers: Processes that read and augment images while the model trains, at most one a core; 0 reads them in the
            training's own.
    """

    collate = staticmethod(segmentation_batch)
    of_card = (
        *DenseDataModule.of_card, "scale", "ratio_range", "crop_size", "ignored", "background", "min_side", "limit",
    )  # fmt: skip

    def __init__(
        self,
        source: str = GENERATED,
        batch_size: int = 2,
        repeats: int = 1,
        scale: int = 512,
        ratio_range: tuple[float, float] = (0.5, 2.0),
        crop_size: int = 512,
        ignored: list[int] | None = None,
        background: bool = False,
        min_side: int = 0,
        limit: int | None = None,
        skip_bad_images: bool = False,
        workers: int = 4,
    ) -> None:
        super().__init__(
            source=source, batch_size=batch_size, repeats=repeats, skip_bad_images=skip_bad_images, workers=workers
        )
        if not 0 < ratio_range[0] <= ratio_range[1] < float("inf"):
            raise UserError(f"ratio_range {tuple(ratio_range)}: name two parts above 0, such as [0.5, 2].")
        _check_sides(scale=scale, crop_size=crop_size)
        _check_choice(min_side, limit)
        self.scale, self.ratio_range, self.crop_size = scale, list(ratio_range), crop_size
        self.ignored, self.background = ignored or [], background
        self.min_side, self.limit = min_side, limit

    def open(self) -> DenseData:
        choice = Choice(
            short=self.scale,
            long=LONGER * self.scale,
            min_side=self.min_side,
            limit=self.limit,
            skip_bad_images=self.skip_bad_images,
        )
        return open_masks(self.source, ignored=self.ignored, background=self.background, choice=choice)

    def train_transform(self) -> SegmentationAugmentation:
        low, high = self.ratio_range
        return SegmentationAugmentation(scale=self.scale, ratio_range=(low, high), crop_size=self.crop_size)

    def eval_transform(self) -> SegmentationEvaluation:
        return SegmentationEvaluation(scale=self.scale)


def _check_sides(**sides: int) -> None:
    for name, side in sides.items():
        if side < 1:
            raise UserError(f"{name} {side}: name a number of pixels, 1 or more.")


def _check_choice(min_side: int, limit: int | None) -> None:
    if min_side < 0:
        raise UserError(f"min_side {min_side}: name a number of pixels, or 0 to keep all objects.")
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit}: name a number of images, 1 or more.")


def _absolute(path: str | None) -> str | None:
    return None if path is None else absolute_source(path)


def _part(annotations: str | None, images: str | None) -> Part | None:
    return None if annotations is None or images is None else Part(Path(annotations), Path(images))
