"""Mask R-CNN and UperNet: what they are made of, and that each part computes what is said of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

import dense_tables
from mpvg.dense.detection import MaskRCNN, build_mask_rcnn
from mpvg.dense.detection_parts import Anchors, RoIPool
from mpvg.dense.maps import STRIDES
from mpvg.dense.segmentation import UperNet, build_upernet
from mpvg.errors import UserError
from tables import filled

CLASSES = 3


class Convolutions(nn.Module):
    """The smallest backbone of four maps."""

    def __init__(self) -> None:
        super().__init__()
        widths, steps = [3, 8, 12, 16, 20], [4, 2, 2, 2]
        self.feature_info = [
            {"num_chs": width, "reduction": stride} for width, stride in zip(widths[1:], STRIDES, strict=True)
        ]
        self.layers = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], step, stride=step) for i, step in enumerate(steps)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        def maps() -> Iterator[Tensor]:
            level = x
            for layer in self.layers:
                level = layer(level).relu()
                yield level

        return list(maps())


@pytest.fixture(scope="module")
def mask_rcnn() -> MaskRCNN:
    torch.manual_seed(0)
    return build_mask_rcnn(Convolutions(), CLASSES, width=32, hidden=64, rois=32, proposals=(50, 20), detections=7)


@pytest.fixture(scope="module")
def upernet() -> UperNet:
    torch.manual_seed(0)
    return build_upernet(Convolutions(), CLASSES, channels=16, auxiliary_channels=8)


def target(*boxes: tuple[float, ...], size: tuple[int, int]) -> dict[str, Tensor]:
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[int(top) : int(bottom), int(left) : int(right)] = 1
    labels = torch.arange(len(boxes)) % CLASSES + 1
    return {"boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4), "labels": labels, "masks": masks}


def pixels(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def test_head_parameters_are_the_official_ones() -> None:
    """To the unit, at the paper's numbers of classes and channels."""
    for part, official in dense_tables.OFFICIAL.items():
        assert dense_tables.counted()[part] == official, part


def test_the_document_prints_what_is_counted() -> None:
    document = dense_tables.DOCUMENT.read_text(encoding="utf-8")
    assert filled(document, dense_tables.TABLES) == document
    printed = {int(figure.replace(",", "")) for figure in re.findall(r"\d[\d,]{6,}", dense_tables.head_parameters())}
    assert set(dense_tables.OFFICIAL.values()) <= printed


def test_a_training_step_gives_every_parameter_a_gradient(mask_rcnn: MaskRCNN) -> None:
    mask_rcnn.train()
    targets = [target((4, 4, 40, 30), (20, 30, 60, 62), size=(64, 80)), target((0, 0, 32, 50), size=(50, 64))]
    losses = mask_rcnn(pixels((64, 80), (50, 64)), targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    sum(losses.values()).backward()
    for name, parameter in mask_rcnn.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    mask_rcnn.zero_grad(set_to_none=True)


def test_images_without_objects_are_background(mask_rcnn: MaskRCNN) -> None:
    mask_rcnn.train()
    losses = mask_rcnn(pixels((64, 64), (64, 64)), [target(size=(64, 64)), target(size=(64, 64))])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask"] == 0
    assert losses["loss_box_reg"] == 0
    assert losses["loss_classifier"] > 0


def test_detections_are_at_the_size_that_is_asked_for(mask_rcnn: MaskRCNN) -> None:
    mask_rcnn.eval()
    (image,) = pixels((64, 96))
    with torch.no_grad():
        (own,) = mask_rcnn([image])
        (double,) = mask_rcnn.detect([image], [(128, 192)])
    assert 0 < len(own["boxes"]) <= 7
    assert torch.allclose(2 * own["boxes"], double["boxes"], atol=1e-4)
    assert torch.equal(own["scores"], double["scores"])
    assert own["scores"].diff().max() <= 0
    assert own["labels"].min() >= 1
    assert own["labels"].max() <= CLASSES
    assert double["masks"].shape[1:] == (1, 128, 192)


def test_bytes_are_pixels_from_0_to_1(mask_rcnn: MaskRCNN) -> None:
    mask_rcnn.eval()
    images = pixels((64, 64))
    with torch.no_grad():
        (one,), (two,) = mask_rcnn(images), mask_rcnn([image / 255 for image in images])
    assert torch.equal(one["boxes"], two["boxes"])


def test_anchors_are_written_out() -> None:
    """An image of 800 x 1344 has a last map of 13 x 21, whose anchors stand 64 pixels apart."""
    grids = [(200, 336), (100, 168), (50, 84), (25, 42), (13, 21)]
    maps = [torch.zeros(1, 1, *grid, dtype=torch.bfloat16) for grid in grids]
    found = Anchors()(ImageList(torch.zeros(1, 3, 800, 1344), [(800, 1344)]), maps)[0].double().numpy()
    expected = []
    for stride, (rows, columns) in zip((4, 8, 16, 32, 64), grids, strict=True):
        for row in range(rows):
            for column in range(columns):
                for ratio in (0.5, 1.0, 2.0):
                    width, height = 8 * stride / ratio**0.5, 8 * stride * ratio**0.5
                    x, y = column * stride, row * stride
                    expected.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    assert np.abs(found - np.array(expected)).max() < 1e-4


@pytest.mark.parametrize(("side", "level"), [(20, 0), (111, 0), (113, 1), (223, 1), (225, 2), (449, 3), (900, 3)])
def test_a_box_is_cut_out_of_the_map_of_its_size(side: int, level: int) -> None:
    """Each map tells in three channels the x and y of its pixels' centres, in pixels of the image, and its number."""
    maps = {}
    for i, stride in enumerate((4, 8, 16, 32)):
        centres = (torch.arange(1024 // stride) + 0.5) * stride
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        maps[str(i)] = torch.stack([x, y, torch.full_like(x, i)])[None]
    left, top = 51.3, 64.9
    found = RoIPool(7)(maps, [torch.tensor([[left, top, left + side, top + side]])], [(1024, 1024)])[0]
    bins = (torch.arange(7) + 0.5) * side / 7
    assert found[2].unique().tolist() == [level]
    assert torch.allclose(found[0], (left + bins).expand(7, 7), atol=1e-3)
    assert torch.allclose(found[1], (top + bins)[:, None].expand(7, 7), atol=1e-3)


def test_boxes_of_several_images_are_cut_out_of_their_own() -> None:
    maps = {str(i): torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1).expand(3, 1, 8, 8) for i in range(4)}
    box = torch.tensor([[1.0, 1.0, 20.0, 20.0]])
    found = RoIPool(2)(maps, [box, torch.empty(0, 4), torch.cat([box, box])], [(32, 32)] * 3)
    assert found.mean(dim=(1, 2, 3)).tolist() == [1, 3, 3]


def test_coordinates_stay_precise_in_half_precision(mask_rcnn: MaskRCNN) -> None:
    mask_rcnn.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = mask_rcnn(pixels((64, 64)))
    assert found["boxes"].dtype == torch.float32
    mask_rcnn.train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = mask_rcnn(pixels((64, 64)), [target((3, 3, 33, 33), size=(64, 64))])
    assert all(loss.isfinite() for loss in losses.values())


def test_upernet_gives_logits_at_the_size_of_the_image(upernet: UperNet) -> None:
    with torch.no_grad():
        assert upernet.eval()(torch.rand(2, 3, 64, 96)).shape == (2, CLASSES, 64, 96)


def test_windows_slide_over_an_image_and_are_averaged(upernet: UperNet) -> None:
    """Windows of 64 every 32 pixels over 64 x 96: two, averaged where both see; their classes at twice the size."""
    upernet.eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        left, right = upernet(x[..., :64]), upernet(x[..., 32:])
        average = torch.cat([left[..., :32], (left[..., 32:] + right[..., :32]) / 2, right[..., 32:]], dim=3)
        expected = nn.functional.interpolate(average, size=(128, 192), mode="bilinear").argmax(dim=1)
        assert torch.equal(upernet.segment(x, (128, 192), window=(64, 32)), expected)
        whole = nn.functional.interpolate(upernet(x), size=(128, 192), mode="bilinear").argmax(dim=1)
        assert torch.equal(upernet.segment(x, (128, 192), window=None), whole)
        assert not torch.equal(whole, expected)


def test_the_loss_of_upernet_is_written_out(upernet: UperNet) -> None:
    """Pixels without a class count as zero in the mean, in both heads; the auxiliary one reads the third map."""
    upernet.eval()
    x = torch.rand(2, 3, 64, 64)
    masks = torch.randint(0, CLASSES, (2, 64, 64))
    masks[:, :16] = 255
    with torch.no_grad():
        losses = upernet.losses(x, masks)
        small = upernet.auxiliary_head(upernet.backbone(x)[2])
        large = nn.functional.interpolate(small, size=(64, 64), mode="bilinear")
        for name, logits, weight in (("loss_decode", upernet(x), 1.0), ("loss_aux", large, 0.4)):
            values = logits.double().numpy()
            log_sums = np.log(np.exp(values).sum(axis=1))
            own = np.take_along_axis(values, np.where(masks == 255, 0, masks)[:, None], axis=1)[:, 0]
            expected = weight * np.where(masks == 255, 0, log_sums - own).mean()
            assert losses[name].item() == pytest.approx(expected, rel=1e-5)


def test_a_crop_without_any_class_has_no_loss(upernet: UperNet) -> None:
    losses = upernet.train().losses(torch.rand(2, 3, 64, 64), torch.full((2, 64, 64), 255))
    assert sum(losses.values()) == 0


def test_heads_go_with_any_backbone_of_timm() -> None:
    backbone = timm.create_model("resnet10t", features_only=True, out_indices=(1, 2, 3, 4))
    assert build_mask_rcnn(backbone, 2).backbone.fpn.inner_blocks[0][0].in_channels == 64
    with torch.no_grad():
        assert build_upernet(backbone, 2, channels=8).eval()(torch.rand(1, 3, 32, 64)).shape == (1, 2, 32, 64)


@pytest.mark.parametrize(
    ("build", "given", "told"),
    [
        (build_mask_rcnn, {"num_classes": 0}, "num_classes 0: name a number, 1 or more."),
        (build_mask_rcnn, {"num_classes": 2, "rois": 0}, "rois 0: name a number, 1 or more."),
        (build_mask_rcnn, {"num_classes": 2, "proposals": (9, 0)}, "proposals 0"),
        (build_mask_rcnn, {"num_classes": 2, "score_threshold": 1.0}, "score_threshold 1.0"),
        (build_upernet, {"num_classes": 2, "channels": 0}, "channels 0"),
        (build_upernet, {"num_classes": 2, "dropout": 1.0}, "dropout 1.0"),
        (build_upernet, {"num_classes": 2, "auxiliary_weight": -1.0}, "auxiliary_weight -1.0"),
    ],
)
def test_bad_settings_are_told_in_one_line(build: Any, given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        build(Convolutions(), **given)


def test_a_backbone_of_other_strides_is_refused() -> None:
    backbone = timm.create_model("resnet10t", features_only=True, out_indices=(0, 1, 2, 3))
    with pytest.raises(UserError, match=re.escape("maps of strides (2, 4, 8, 16)")):
        build_mask_rcnn(backbone, 2)
