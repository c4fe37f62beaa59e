"""Small sets for dense tasks, written to a folder."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 9, "name": "late"}, {"id": 2, "name": "early"}, {"id": 5, "name": "never"}]
SQUARE = [4, 6, 14, 6, 14, 16, 4, 16]


def objects(**changes: Any) -> dict[str, Any]:
    """Three images of 40 x 30 pixels: one with a square and a crowd, one with a triangle, one without objects."""
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (30, 10, 20)],
        "categories": CATEGORIES,
        "annotations": [
            annotation(7, 10, 9),
            annotation(8, 10, 2, iscrowd=1, segmentation={"size": [30, 40], "counts": [600, 300, 300]}),
            annotation(3, 30, 2, bbox=[20, 5, 10, 20], area=100, segmentation=[[20, 5, 30, 5, 20, 25]]),
        ],
    }
    return {**deepcopy(content), **changes}


def annotation(identity: int, image: int, category: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": identity, "image_id": image, "category_id": category, "bbox": [4, 6, 10, 10], "area": 100.0,
        "iscrowd": 0, "segmentation": [SQUARE], **changes,
    }  # fmt: skip


def write_coco(root: Path, content: Any = None, *, name: str = "instances.json", images: str = "images") -> Path:
    """Write a set in COCO's format, with noise for images."""
    content = objects() if content is None else content
    random = np.random.default_rng(0)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for image in content["images"]:
        file = root / images / str(image.get("file_name"))
        file.parent.mkdir(parents=True, exist_ok=True)
        size = image.get("height", 30), image.get("width", 40), 3
        Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(file)
    return root


def write_masks(root: Path, *, images: str = "train/images", masks: str = "train/masks", count: int = 3) -> Path:
    """Write images and masks of the ids 0 to 2, with a frame of 255."""
    random = np.random.default_rng(0)
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = random.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / images / f"{number}.png")
        ids = random.integers(0, 3, pixels.shape[:2], dtype=np.uint8)
        ids[0] = 255
        Image.fromarray(ids).save(root / masks / f"{number}.png")
    return root
