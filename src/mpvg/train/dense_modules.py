"""Detection and segmentation on Lightning: heads on a ViT-Adapter, and what their predictions are measured by."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mpvg.data.dense.transforms_detection import DetectionBatch
from mpvg.data.dense.transforms_segmentation import LONGER, SegmentationBatch
from mpvg.dense.card import DETECTION, SEGMENTATION, DenseCard
from mpvg.dense.detection import MASK_THRESHOLD
from mpvg.dense.measures import DetectionAP, MeanIoU
from mpvg.errors import UserError
from mpvg.train.dense_data import DetectionData, SegmentationData
from mpvg.train.dense_recipe import OF_DETECTION, OF_SEGMENTATION, DenseRecipe
from mpvg.train.dense_training import DenseTraining


class ObjectDetection(DenseTraining):
    """Mask R-CNN on a ViT-Adapter under a position scheme, trained to find objects.

    Args:
        name: A backbone of this library (mpvg_vit_adapter_*).
        scheme: Position scheme, by name or text ("mpvg:last_norm=5").
        arguments: Further arguments of the backbone, such as drop_path_rate and window_size; by default attention is
            within windows of 14 tokens in three blocks of four.
        head: Arguments of Mask R-CNN: anchors, candidates, proposals, rois, detections, score_threshold.
        pretrained: Weights for the trunk: a classification model's file or folder, or timm's name of some.
        compile: How torch.compile compiles the backbone: default, reduce-overhead (with CUDA graphs) or max-autotune;
            not at all by default.
        recipe: How to train.
    """

    watched = "val/box_ap"
    task = DETECTION
    of_task: ClassVar[dict[str, Any]] = {"vit_maps": "last", "window_size": 14}

    def __init__(
        self,
        name: str = "mpvg_vit_adapter_tiny_patch16",
        scheme: str = "mpvg",
        arguments: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
        pretrained: str | None = None,
        compile: str | None = None,
        recipe: DenseRecipe = OF_DETECTION,
    ) -> None:
        super().__init__(
            name=name,
            scheme=scheme,
            arguments=arguments,
            head=head,
            pretrained=pretrained,
            compile=compile,
            recipe=recipe,
        )

    @staticmethod
    def backbone_of(model: Any) -> Any:
        return model.backbone.body

    def check_start(self) -> None:
        precision = str(self.trainer.precision)
        if precision.endswith("true") and not precision.startswith("32"):
            raise UserError(
                f"--trainer.precision {precision}: boxes need coordinates in float32, name "
                f"{precision.removesuffix('-true')}-mixed."
            )

    def evaluation(self, data: DetectionData) -> dict[str, Any]:
        return {"scale": data.eval_scale, "long": data.max_long}

    def create_measure(self, card: DenseCard) -> Metric:
        return DetectionAP(card.category_ids)

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        return self.descend(self.model(batch.images, batch.targets))

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def _evaluate(self, batch: DetectionBatch) -> None:
        found = self.model.detect(batch.images, [target["size"] for target in batch.targets])
        for one in found:
            one["masks"] = (one["masks"][:, 0] >= MASK_THRESHOLD).to(torch.uint8)
        self.measure.update(found, batch.targets)


class SemanticSegmentation(DenseTraining):
    """UperNet on a ViT-Adapter under a position scheme, trained to name pixels.

    Args:
        name: A backbone of this library (mpvg_vit_adapter_*).
        scheme: Position scheme, by name or text ("mpvg:last_norm=5").
        arguments: Further arguments of the backbone, such as drop_path_rate; by default attention is global, and the
            trunk's map after each interaction joins the outputs.
        head: Arguments of UperNet: channels, auxiliary_channels, auxiliary_weight, dropout.
        evaluates: "slide" for windows that slide over the image, "whole" for the image at once.
        window: Side of these windows, and pixels between two.
        pretrained: Weights for the trunk: a classification model's file or folder, or timm's name of some.
        compile: How torch.compile compiles the backbone: default, reduce-overhead (with CUDA graphs) or max-autotune;
            not at all by default.
        recipe: How to train.
    """

    watched = "val/miou"
    task = SEGMENTATION
    of_task: ClassVar[dict[str, Any]] = {"vit_maps": "each", "window_size": None}

    def __init__(
        self,
        name: str = "mpvg_vit_adapter_tiny_patch16",
        scheme: str = "mpvg",
        arguments: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
        evaluates: str = "slide",
        window: tuple[int, int] = (512, 341),
        pretrained: str | None = None,
        compile: str | None = None,
        recipe: DenseRecipe = OF_SEGMENTATION,
    ) -> None:
        super().__init__(
            name=name,
            scheme=scheme,
            arguments=arguments,
            head=head,
            pretrained=pretrained,
            compile=compile,
            recipe=recipe,
        )
        if evaluates not in ("slide", "whole"):
            raise UserError(f"evaluates {evaluates!r} is unknown: name slide or whole.")
        side, stride = window
        if not 0 < stride <= side:
            raise UserError(f"window {list(window)}: name a side, and pixels between two from 1 to that side.")
        self.window = (side, stride) if evaluates == "slide" else None

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "window": self.window and list(self.window)}

    def evaluation(self, data: SegmentationData) -> dict[str, Any]:
        return {"scale": data.scale, "long": LONGER * data.scale, "window": self.window}

    def create_measure(self, card: DenseCard) -> Metric:
        return MeanIoU(len(card.classes))

    def check_start(self) -> None:
        if self.images_a_step // self.trainer.world_size < 2:
            raise UserError(
                "one image a step in each process: UperNet's batch norm of a single pooled value needs two, name "
                "--data.batch_size 2 for each, and for a set of one image --data.repeats 2."
            )

    def training_step(self, batch: SegmentationBatch, batch_idx: int) -> Tensor:
        return self.descend(self.model.losses(self._normalised(batch.pixels), batch.masks))

    def validation_step(self, batch: SegmentationBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: SegmentationBatch, batch_idx: int) -> None:
        self._evaluate(batch)

    def _normalised(self, pixels: Tensor) -> Tensor:
        assert self.card is not None
        return self.card.normalised(pixels)

    def _evaluate(self, batch: SegmentationBatch) -> None:
        assert self.card is not None
        height, width = batch.masks.shape[-2:]
        window = self.card.evaluation["window"]
        found = self.model.segment(self._normalised(batch.pixels), (height, width), window=window)
        self.measure.update(found, batch.masks)
