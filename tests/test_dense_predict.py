"""Predictions of detectors and segmenters: from any image to objects, class maps, files of them and pictures."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from helpers import perturb
from mpvg.dense.card import DETECTION, SEGMENTATION, DenseCard, check_backbone, check_head
from mpvg.dense.drawing import colour_of, draw_class_map, draw_detections
from mpvg.dense.measures import to_coco_results
from mpvg.dense.predictor import (
    ClassMap,
    Detections,
    Detector,
    Segmenter,
    create_predictor,
    image_ids,
    write_mask,
)
from mpvg.errors import UserError

TINY = {"embed_dim": 24, "depth": 4, "num_heads": 2, "deform_heads": 2, "prior_width": 8, "img_size": 64}
CARD = DenseCard(
    task=DETECTION,
    model="mpvg_vit_adapter_tiny_patch16",
    scheme="mpvg",
    arguments={**TINY, "window_size": 4},
    head={"rois": 8, "proposals": [20, 10], "detections": 4, "score_threshold": 0.0},
    classes=("cat", "dog"),
    category_ids=(3, 70),
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    evaluation={"scale": 64, "long": 96},
    data={"source": "generated"},
)
OF_MAPS = replace(
    CARD,
    task=SEGMENTATION,
    arguments={**TINY, "vit_maps": "each"},
    head={"channels": 8, "auxiliary_channels": 8},
    evaluation={"scale": 64, "long": 256, "window": (64, 48)},
)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    found = create_predictor(CARD, CARD.build().eval())
    assert isinstance(found, Detector)
    return found


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    found = create_predictor(OF_MAPS, perturb(OF_MAPS.build()).eval())
    assert isinstance(found, Segmenter)
    return found


def pixels(*size: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


@pytest.mark.parametrize("card", [CARD, OF_MAPS], ids=["detection", "segmentation"])
def test_a_card_comes_back_from_json(card: DenseCard) -> None:
    again = DenseCard.from_dict(json.loads(json.dumps(card.as_dict())))
    assert replace(again, head=card.head) == card
    assert again.build().load_state_dict(card.build().state_dict())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"task": "counting"}, "its task is 'counting'"),
        ({"category_ids": [1]}, "it has 2 classes and 1 numbers for them"),
        (
            {"model": "mpvg_vit_adapter_tini_patch16"},
            "did you mean 'mpvg_vit_adapter_tiny_patch16'",
        ),
        ({"scheme": "mpgv"}, "mpgv"),
    ],
)
def test_a_card_that_means_nothing_is_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DenseCard.from_dict({**CARD.as_dict(), **changed})


def test_what_cannot_be_built_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"mpvg_vit_adapter_tiny_patch16 under mpvg: .*'windows'"):
        replace(CARD, arguments={"windows": 3}).build()
    with pytest.raises(UserError, match=r"head\.roi is unknown .did you mean 'rois'..: name one of width, "):
        check_head(DETECTION, {"roi": 3})
    with pytest.raises(UserError, match=r"head\.rois is unknown: name one of channels, "):
        check_head(SEGMENTATION, {"rois": 3})
    with pytest.raises(UserError, match="'resnet18' gives no four maps: use one of mpvg_vit_adapter_base_patch16, "):
        check_backbone("resnet18")


@pytest.mark.parametrize(
    "image",
    [pixels(50, 80, 3), pixels(50, 80), pixels(1, 40, 3), Image.fromarray(pixels(50, 80, 3)).convert("CMYK")],
    ids=["colour", "grey", "one pixel high", "CMYK"],
)
def test_any_image_is_seen(image: Any, detector: Detector, segmenter: Segmenter) -> None:
    size = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]
    (found,) = detector.predict(image)
    count = len(found.scores)
    assert count <= 4
    assert found.boxes.shape == (count, 4)
    assert found.masks.shape == (count, *size)
    assert set(np.unique(found.masks)) <= {0, 1}
    assert all(name == CARD.classes[label - 1] for name, label in zip(found.names, found.labels, strict=True))
    assert (found.boxes[:, [0, 2]] <= size[1] + 1e-3).all()
    (named,) = segmenter.predict(image)
    assert named.labels.shape == size
    assert set(np.unique(named.labels)) <= {0, 1}


def test_files_are_seen_as_they_are_stored(tmp_path: Path, segmenter: Segmenter) -> None:
    """As in training and testing, whatever their EXIF data say of the way up."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    (stored,), (turned,) = segmenter.predict([pixels]), segmenter.predict([tmp_path / "turned.png"])
    assert np.array_equal(turned.labels, stored.labels)


def test_an_image_is_resized_and_normalised_as_the_card_says(detector: Detector) -> None:
    """A grey of 0.7 is (0.7 - 0.5) / 0.2 = 1 to the backbone, in an image of 48 x 96 at a long side of 96."""
    seen: list[torch.Tensor] = []
    hook = detector.model.backbone.body.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    detector.predict(np.full((50, 100, 3), 178, np.uint8))
    hook.remove()
    (found,) = seen
    assert found.shape == (1, 3, 64, 96)  # padded
    assert torch.allclose(found[:, :, :48], torch.full((1, 3, 48, 96), (178 / 255 - 0.5) / 0.2), atol=1e-5)
    assert (found[:, :, 48:] == 0).all()


def some(*, file: str | None = None) -> Detections:
    masks = np.zeros((2, 20, 30), np.uint8)
    masks[0, 2:8, 3:9], masks[1, 10:18, 12:28] = 1, 1
    boxes = np.array([[3, 2, 9, 8], [12, 10, 28, 18]], np.float32)
    return Detections(file, boxes, np.array([2, 1]), ("dog", "cat"), np.array([0.9, 0.4], np.float32), masks)


def test_results_are_read_by_pycocotools(tmp_path: Path) -> None:
    found = to_coco_results([some()._asdict(), some()._asdict()], [139, 285], (3, 70))
    (tmp_path / "found.json").write_text(json.dumps(found))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image, "height": 20, "width": 30} for image in (139, 285)],
        "categories": [{"id": 3}, {"id": 70}],
        "annotations": [],
    }
    with redirect_stdout(io.StringIO()):
        truth.createIndex()
        read = truth.loadRes(str(tmp_path / "found.json"))
    annotations = read.loadAnns(read.getAnnIds(imgIds=[139]))
    assert [one["category_id"] for one in annotations] == [70, 3]
    assert [one["bbox"] for one in annotations] == [[3, 2, 6, 6], [12, 10, 16, 8]]
    assert [round(one["score"], 3) for one in annotations] == [0.9, 0.4]
    assert np.array_equal(read.annToMask(annotations[1]), some().masks[1])


def test_ids_are_the_numbers_in_the_names_or_the_places() -> None:
    assert image_ids(["x/000000000139.jpg", "7.png"]) == [139, 7]
    assert image_ids(["x/139.jpg", "y/139.png"]) == [1, 2]
    assert image_ids(["139.jpg", "dog.jpg", None]) == [1, 2, 3]


def test_masks_hold_the_sets_own_numbers(tmp_path: Path) -> None:
    found = ClassMap(None, np.array([[0, 1, 149], [2, 0, 1]]))
    write_mask(tmp_path / "ade.png", found, range(1, 151))
    with Image.open(tmp_path / "ade.png") as image:
        assert image.mode == "L"
        assert np.asarray(image).tolist() == [[1, 2, 150], [3, 1, 2]]
    write_mask(tmp_path / "large.png", found, [*range(149), 40_000])
    with Image.open(tmp_path / "large.png") as image:
        assert np.asarray(image).tolist() == [[0, 1, 40_000], [2, 0, 1]]
    with pytest.raises(UserError, match="classes have 70000"):
        write_mask(tmp_path / "more.png", found, [70_000])


def test_objects_are_drawn_where_they_are() -> None:
    grey = np.full((100, 150, 3), 128, np.uint8)
    found = some()
    large = found._replace(boxes=found.boxes * 5, masks=found.masks.repeat(5, axis=1).repeat(5, axis=2))
    drawn = np.asarray(draw_detections(grey, large, min_score=0.0)).astype(int)
    assert drawn.shape == grey.shape
    assert tuple(drawn[89, 100]) == colour_of(0)  # the lower edge of the cat's box
    inside = drawn[80, 100]
    assert np.abs(inside - (0.55 * 128 + 0.45 * np.array(colour_of(0)))).max() <= 1.5
    assert tuple(drawn[95, 10]) == (128, 128, 128)
    surer = np.asarray(draw_detections(grey, large, min_score=0.5))
    assert tuple(surer[89, 100]) == (128, 128, 128)
    assert tuple(surer[39, 30]) == colour_of(1)
    none = large._replace(scores=np.zeros(2, np.float32))
    assert np.array_equal(np.asarray(draw_detections(grey, none)), grey)


def test_the_surer_of_two_masks_lies_on_top() -> None:
    grey = np.full((100, 150, 3), 128, np.uint8)
    both = some()._replace(masks=np.ones((2, 100, 150), np.uint8), boxes=np.array([[0, 0, 9, 9]] * 2, np.float32))
    drawn = np.asarray(draw_detections(grey, both, min_score=0.0))[50, 75].astype(int)
    below = 0.55 * 128 + 0.45 * np.array(colour_of(0))
    assert np.abs(drawn - (0.55 * below + 0.45 * np.array(colour_of(1)))).max() <= 2


def test_class_maps_have_a_legend() -> None:
    labels = np.zeros((40, 200), int)
    labels[:, 150:] = 1
    drawn = np.asarray(draw_class_map(np.full((40, 200, 3), 128, np.uint8), ClassMap(None, labels), ("cat", "dog")))
    assert drawn.shape[0] > 40
    assert drawn.shape[1] == 200
    for x, label in ((10, 0), (190, 1)):
        expected = 0.4 * 128 + 0.6 * np.array(colour_of(label))
        assert np.abs(drawn[20, x].astype(int) - expected).max() <= 1.5
        assert (drawn[40:] == np.array(colour_of(label))).all(axis=2).any()
    hidden = np.asarray(
        draw_class_map(np.full((40, 200, 3), 128, np.uint8), ClassMap(None, labels), ("cat", "dog"), hidden=(0,))
    )
    assert tuple(hidden[20, 10]) == (128, 128, 128)


def test_colours_of_neighbours_differ() -> None:
    colours = np.array([colour_of(label) for label in range(150)])
    assert len(np.unique(colours, axis=0)) > 140
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 60
