"""Pixels, boxes, masks and class maps stay on each other, and sizes are those of the papers' frameworks."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pycocotools")

from mpvg.data.dense.coco import GENERATED, Choice, open_coco
from mpvg.data.dense.sizes import fitted, rounded_up
from mpvg.data.dense.split import Objects
from mpvg.data.dense.transforms_detection import DetectionAugmentation, DetectionEvaluation
from mpvg.data.dense.transforms_segmentation import (
    SegmentationAugmentation,
    SegmentationEvaluation,
    distorted,
    saturated,
)

SCALES = tuple(range(480, 801, 32))
AUGMENTATIONS = {
    "official": DetectionAugmentation(scales=SCALES, max_long=1333, crop=True),
    "small": DetectionAugmentation(scales=(64, 90), max_long=100, crop=False),
}


def stream(number: int) -> np.random.Generator:
    return np.random.default_rng([number, 1])


def sample(index: int = 0) -> tuple[Image.Image, Objects]:
    """Bright shapes on dark noise."""
    split: Any = open_coco(GENERATED, choice=Choice(short=96, long=128)).train
    found: tuple[Image.Image, Objects] = split.sample(index)
    return found


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_pixels_boxes_and_masks_stay_on_each_other(name: str) -> None:
    gone = 0
    for number in range(24):
        image, objects = sample(number % 8)
        pixels, found = AUGMENTATIONS[name](image, objects, stream(number))
        height, width = pixels.shape[1:]
        bright = pixels.float().mean(dim=0) > 110
        there = found["masks"].any(dim=0) if len(found["masks"]) else torch.zeros_like(bright)
        assert (bright != there).float().mean() < 0.02
        gone += 2 - len(found["labels"])
        for box, mask in zip(found["boxes"], found["masks"], strict=True):
            rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            around = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            outside = torch.cat([box[:2] - around[:2], around[2:] - box[2:]]).max()
            assert outside < 0.8 * max(height / 96, width / 128, 1)  # a pixel of the stored image at most
            if name == "small":
                assert (around - box).abs().max() < 2
            assert box.min() >= 0
            assert box[2] <= width
            assert box[3] <= height
        assert found["area"].tolist() == found["masks"].flatten(1).sum(dim=1).tolist()
        assert len(found["boxes"]) == len(found["iscrowd"]) == len(found["labels"])
        assert (found["boxes"].dtype, found["labels"].dtype) == (torch.float32, torch.int64)
    assert (gone > 0) == (name == "official")  # what a crop leaves nothing of is dropped


def test_sizes_of_training_images_are_those_of_the_recipe() -> None:
    image, objects = Image.new("RGB", (640, 480)), empty((480, 640))
    whole, cropped = set(), []
    for number in range(150):
        pixels, _ = AUGMENTATIONS["official"](image, objects, stream(number))
        height, width = pixels.shape[1:]
        short = min(height, width)
        if width in {min(round(640 * scale / 480), 1024) for scale in SCALES} and height in SCALES:
            whole.add(height)
        else:
            cropped.append((height, width))
        assert short <= 800
        assert max(height, width) <= 1024
    assert whole == set(SCALES)
    assert 50 < len(cropped) < 100
    assert len({round(width / height, 1) for height, width in cropped}) > 4


def test_draws_are_a_function_of_the_stream() -> None:
    image, objects = sample()
    one, again, other = (AUGMENTATIONS["official"](image, objects, stream(number)) for number in (3, 3, 4))
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1]["boxes"], again[1]["boxes"])
    assert one[0].shape != other[0].shape or not torch.equal(one[0], other[0])


def test_boxes_without_an_extent_in_float32_are_dropped() -> None:
    image, found = sample()
    boxes = found.boxes.copy()
    boxes[0, 2] = boxes[0, 0] + 1e-7
    _, learned = AUGMENTATIONS["small"](image, found._replace(boxes=boxes), stream(0))
    assert len(learned["labels"]) == 1
    assert (learned["boxes"][:, 2:] > learned["boxes"][:, :2]).all()


def test_crowds_are_not_learned_and_boxes_are_clipped() -> None:
    image, objects = sample()
    boxes = np.array([objects.boxes[0], [-99, -99, 999, 999]])
    objects = objects._replace(crowds=np.array([True, False]), boxes=boxes)
    _, found = AUGMENTATIONS["small"](image, objects, stream(0))
    assert found["labels"].tolist() == [2]
    assert found["boxes"].tolist() == [[0, 0, found["masks"].shape[2], found["masks"].shape[1]]]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((300, 600), (667, 1333)),
        ((1, 500), (3, 1333)),
        ((1, 5000), (1, 1333)),
    ],
)
def test_evaluated_images_have_a_short_side_of_800_and_a_long_one_of_1333_at_most(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    objects = empty(size)
    pixels, found = DetectionEvaluation(scale=800, max_long=1333)(image_of(size), objects, stream(0))
    assert pixels.shape == (3, *expected)
    assert found["size"] == size
    assert (found["boxes"] is objects.boxes, found["image_id"]) == (True, 1)


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1), (2, 3000)])
def test_images_that_are_one_pixel_high_pass(size: tuple[int, int]) -> None:
    objects = empty(size)._replace(
        boxes=np.array([[0.0, 0, size[1], size[0]]]),
        labels=np.array([1]),
        masks=np.ones((1, *size), np.uint8),
        areas=np.array([1.0]),
        crowds=np.array([False]),
    )
    labels = np.zeros(size, np.uint8)
    for number in range(6):
        pixels, found = AUGMENTATIONS["official"](image_of(size), objects, stream(number))
        assert found["masks"].shape == (1, *pixels.shape[1:])
        assert found["boxes"].tolist() == [[0, 0, *pixels.shape[:0:-1]]]
        augmentation = SegmentationAugmentation(scale=512, ratio_range=(0.5, 2.0), crop_size=64)
        pixels, mask = augmentation(image_of(size), labels, stream(number))
        assert (pixels.shape, mask.shape) == ((3, 64, 64), (64, 64))
        assert (mask == 0).any()
    pixels, mask = SegmentationEvaluation(scale=512)(image_of(size), labels, stream(0))
    assert (pixels.shape[1] % 32, pixels.shape[2] % 32, mask.shape) == (0, 0, size)


def test_class_maps_stay_on_their_pixels() -> None:
    image, objects = sample()
    labels = objects.masks.max(axis=0)
    augmentation = SegmentationAugmentation(scale=96, ratio_range=(0.5, 2.0), crop_size=100)
    sizes = set()
    for number in range(20):
        pixels, mask = augmentation(image, labels, stream(number))
        assert (pixels.shape, pixels.dtype, mask.dtype) == ((3, 100, 100), torch.uint8, torch.int64)
        kept = mask != 255
        rows, columns = int(kept.any(dim=1).sum()), int(kept.any(dim=0).sum())
        assert kept[:rows, :columns].all()
        assert (pixels[:, ~kept] == torch.tensor([[124], [116], [104]])).all()  # nothing, once normalised
        value = pixels.amax(dim=0).float()
        assert value[mask == 1].mean() > 1.5 * value[mask == 0].mean()
        sizes.add((rows, columns))
    assert len(sizes) > 5


def test_a_crop_has_several_classes_where_it_can() -> None:
    labels = np.zeros((400, 400), np.uint8)
    labels[:, 300:] = 1
    augmentation = SegmentationAugmentation(scale=400, ratio_range=(1.0, 1.0), crop_size=100)
    parts = [
        float((augmentation(image_of((400, 400)), labels, stream(number))[1] == 1).float().mean())
        for number in range(40)
    ]
    assert sum(0.25 <= part <= 0.75 for part in parts) > 20  # a single draw would give about 7
    assert min(parts) == 0  # after ten of them, the last is taken


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 683), (512, 704)), ((300, 400), (512, 704)), ((100, 1000), (224, 2048))]
)
def test_segmented_images_are_rounded_up_to_32(size: tuple[int, int], expected: tuple[int, int]) -> None:
    labels = np.zeros(size, np.uint8) + np.arange(size[1], dtype=np.uint8) % 9
    pixels, mask = SegmentationEvaluation(scale=512)(image_of(size), labels, stream(0))
    assert pixels.shape == (3, *expected) == (3, *rounded_up(fitted(size, short=512, long=2048), 32))
    np.testing.assert_array_equal(mask, labels)


def test_saturation_is_that_of_hsv() -> None:
    random = np.random.default_rng(0)
    pixels = random.uniform(0, 255, (3, 40, 1))
    pixels[:, 0] = 90  # grey
    for factor in (0.5, 1.5):
        found = saturated(torch.tensor(pixels), factor)[..., 0].T.numpy()
        for before, after in zip(pixels[..., 0].T, found, strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before / 255)
            expected = colorsys.hsv_to_rgb(hue, min(saturation * factor, 1), value)
            np.testing.assert_allclose(after / 255, expected, atol=1e-6)


def test_colours_are_distorted_in_half_of_the_images_each_way() -> None:
    pixels = torch.tensor([[[100, 30]], [[60, 90]], [[40, 200]]], dtype=torch.uint8)
    found = [distorted(pixels, stream(number)) for number in range(400)]
    same = sum(torch.equal(one, pixels) for one in found)
    assert 10 < same < 45  # a sixteenth
    values = torch.stack(found).float()
    assert all(0.3 < part < 2 for part in (values.mean(dim=(0, 3)) / pixels.float().mean(dim=2)).flatten())
    assert values[:, 0, 0, 0].min() < 60
    assert values[:, 0, 0, 0].max() > 150


def image_of(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def empty(size: tuple[int, int]) -> Objects:
    return Objects(
        image_id=1,
        size=size,
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, np.int64),
        masks=np.zeros((0, *size), np.uint8),
        areas=np.zeros(0),
        crowds=np.zeros(0, bool),
    )
