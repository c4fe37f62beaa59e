"""Mask R-CNN on a backbone of four maps: torchvision's, set to what mmdet's configuration of it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import torchvision
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

from mpvg.dense.detection_parts import (
    Anchors,
    BoxPredictor,
    MaskPredictor,
    Normalisation,
    ProposalHead,
    Pyramid,
    RoIPool,
)
from mpvg.errors import UserError

MASK_THRESHOLD: Final = 0.5  # of what is inside a mask
_BOX_SIDE, _MASK_SIDE = 7, 14  # of what is cut out of a map for a box and for a mask


class MaskRCNN(torchvision.models.detection.MaskRCNN):
    """torchvision's Mask R-CNN, which takes pixels and tells boxes and masks at the images' original sizes.

    Labels begin at 1, since 0 is the background. Images are resized where they are read, not here. In training its
    forward takes images and targets, as torchvision has them, and returns the losses by name; otherwise it is `detect`.
    """

    def forward(self, images: Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Return losses by name in training, and detections otherwise.

        Args:
            images: Each (3, h, w), uint8, or float from 0 to 1.
            targets: Of each image boxes (N, 4) as x1, y1, x2, y2, labels (N,) from 1, masks (N, h, w) uint8.
        """
        if self.training:
            return super().forward([_from_0_to_1(image) for image in images], targets)
        return self.detect(images)

    def detect(
        self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Tensor]]:
        """Find objects, in eval mode.

        Args:
            images: As for `forward`.
            sizes: Height and width of each image at which to tell boxes and masks; None for those it comes with.

        Returns:
            Of each image boxes (N, 4), labels (N,) from 1, scores (N,) and masks (N, 1, H, W) from 0 to 1, the highest
            score first.
        """
        assert not self.training
        told = [(image.shape[-2], image.shape[-1]) for image in images] if sizes is None else list(sizes)
        seen, _ = self.transform([_from_0_to_1(image) for image in images])
        levels = self.backbone(seen.tensors)
        proposals, _ = self.rpn(seen, levels)
        found, _ = self.roi_heads(levels, proposals, seen.image_sizes)
        return self.transform.postprocess(found, seen.image_sizes, told)


def build_mask_rcnn(
    backbone: nn.Module,
    num_classes: int,
    *,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    width: int = 256,
    hidden: int = 1024,
    anchors: int = 256,
    candidates: tuple[int, int] = (2000, 1000),
    proposals: tuple[int, int] = (1000, 1000),
    rois: int = 512,
    detections: int = 100,
    score_threshold: float = 0.05,
) -> MaskRCNN:
    """Build Mask R-CNN with a feature pyramid on a backbone.

    Counts and thresholds are those of mmdet's configuration by default; docs/fidelity.md lists what differs from it.

    Args:
        backbone: Gives maps of strides 4, 8, 16 and 32, with timm's `feature_info`.
        num_classes: Classes of objects, without the background, which the model adds by itself as class 0.
        mean: Of each channel, of pixels from 0 to 1.
        std: Likewise.
        width: Channels of the pyramid and of the mask head.
        hidden: Width of the box head.
        anchors: Of each training image that the proposals' loss is computed of.
        candidates: Of each map that are ranked, in training and outside.
        proposals: Of each image that are left of them, in training and outside.
        rois: Of each training image that the heads are trained on, a quarter of them objects at most.
        detections: Of each image at most.
        score_threshold: Least score of a detection.

    Returns:
        The model, in training mode, with the initial values of mmdet's heads.

    Raises:
        UserError: The backbone's maps have other strides, or a count is none.

    Source:
        He et al., Mask R-CNN, 2017; mmdet's mask_rcnn_r50_fpn, on which ViT-Adapter's configuration is based.
    """
    counts = {
        "num_classes": num_classes,
        "width": width,
        "hidden": hidden,
        "anchors": anchors,
        "rois": rois,
        "detections": detections,
    }
    counts |= {"candidates": min(candidates), "proposals": min(proposals)}
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} {count}: name a number, 1 or more.")
    if not 0 <= score_threshold < 1:
        raise UserError(f"score_threshold {score_threshold}: name a number from 0 to below 1.")
    generator = Anchors()
    model = MaskRCNN(
        Pyramid(backbone, width=width),
        image_mean=list(mean),
        image_std=list(std),
        rpn_anchor_generator=generator,
        rpn_head=ProposalHead(width, generator.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=candidates[0],
        rpn_pre_nms_top_n_test=candidates[1],
        rpn_post_nms_top_n_train=proposals[0],
        rpn_post_nms_top_n_test=proposals[1],
        rpn_batch_size_per_image=anchors,
        box_roi_pool=RoIPool(_BOX_SIDE),
        box_head=TwoMLPHead(width * _BOX_SIDE**2, hidden),
        box_predictor=BoxPredictor(hidden, num_classes),
        box_batch_size_per_image=rois,
        box_score_thresh=score_threshold,
        box_detections_per_img=detections,
        mask_roi_pool=RoIPool(_MASK_SIDE),
        mask_head=MaskRCNNHeads(width, (width,) * 4, dilation=1),
        mask_predictor=MaskPredictor(width, num_classes),
    )
    model.transform = Normalisation(mean, std)
    _initialise(model)
    return model


def _initialise(model: MaskRCNN) -> None:
    """Give pyramid and box head the initial values of mmdet's; the other parts have them."""
    for part in (model.backbone.fpn, model.roi_heads.box_head):
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)


def _from_0_to_1(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image.to(torch.float32) / 255
