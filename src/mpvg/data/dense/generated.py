"""Shapes on noise, to try a command on: a set in COCO's format that needs no files."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

_COUNT, _SIZE = 8, (96, 128)
_CLASSES = ("rectangle", "disc")


def generated_set() -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """Return annotations in COCO's format, and the images that they are of by name; always the same."""
    random = np.random.default_rng(0)
    ys, xs = np.mgrid[: _SIZE[0], : _SIZE[1]] + 0.5
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    pictures: dict[str, Image.Image] = {}
    for image in range(1, _COUNT + 1):
        pixels = random.integers(0, 96, (*_SIZE, 3), dtype=np.uint8)
        for category in range(len(_CLASSES)):
            radius = random.uniform(12, 30)
            x, y = (random.uniform(radius, side - radius) for side in reversed(_SIZE))
            turns = np.arange(4 if category == 0 else 32) / (4 if category == 0 else 32) + 1 / 8
            outline = np.stack([x + radius * np.cos(turns * 2 * np.pi), y + radius * np.sin(turns * 2 * np.pi)], 1)
            inside = np.hypot(xs - x, ys - y) < radius
            if category == 0:
                inside = np.maximum(abs(xs - x), abs(ys - y)) < radius / 2**0.5
            pixels[inside] = random.integers(128, 256, 3)
            corner, end = outline.min(axis=0), outline.max(axis=0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category + 1,
                    "bbox": [*corner.tolist(), *(end - corner).tolist()],
                    "area": float(inside.sum()),
                    "iscrowd": 0,
                    "segmentation": [outline.flatten().tolist()],
                }
            )
        name = f"{image}.png"
        images.append({"id": image, "file_name": name, "height": _SIZE[0], "width": _SIZE[1]})
        pictures[name] = Image.fromarray(pixels)
    categories = [{"id": number, "name": name} for number, name in enumerate(_CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}, pictures
