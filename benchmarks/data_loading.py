"""How many images a second one core turns from JPEG files into training tensors, by DeiT's recipe.

    python benchmarks/data_loading.py [--images 256] [--rounds 5] [--out results/bench/data_loading.csv]

The files are of ImageNet's usual size, 500 x 375 pixels and about 110 KB each: smooth noise of many scales, so that
they decode as photographs do. One process and one thread, reading included (from the system's cache after the first
round, which is not counted). A row for each round goes into the CSV file.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform

from mpvg.machine import machine_name

SIZE = (500, 375)
QUALITY = 90
SCALES = (2, 4, 8, 16, 32, 64)  # pixels between the noise's points
GRAIN = 23.0  # standard deviation of noise in each pixel; chosen for files of about 110 KB, ImageNet's mean


def photograph(seed: int) -> Image.Image:
    """Return smooth noise: of each scale as much as its pixels, as in photographs, and some grain."""
    generator, (width, height) = np.random.default_rng(seed), SIZE
    canvas = np.full((height, width, 3), 128.0)
    for scale in SCALES:
        points = generator.uniform(0, 255, (height // scale + 2, width // scale + 2, 3)).astype(np.uint8)
        smooth = Image.fromarray(points).resize(SIZE, Image.Resampling.BICUBIC)
        canvas += (np.asarray(smooth, dtype=float) - 128) * scale / sum(SCALES)
    canvas += generator.normal(0, GRAIN, canvas.shape)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def write_images(folder: Path, count: int) -> list[Path]:
    files = [folder / f"{index:04}.jpg" for index in range(count)]
    for index, file in enumerate(files):
        photograph(index).save(file, quality=QUALITY)
    return files


def training_transform() -> Callable[[Image.Image], Any]:
    """Return DeiT's: crop, flip, two operations of RandAugment, random erasing."""
    return create_transform(
        224,
        is_training=True,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )


def images_per_second(files: Sequence[Path], transform: Callable[[Image.Image], Any]) -> float:
    start = time.perf_counter()
    for file in files:
        with Image.open(file) as image:
            photo = image.convert("RGB")
        try:
            transform(photo)
        except ValueError:  # timm's posterizing asks Pillow for 0 bits about once in 500 images
            transform(photo)
    return len(files) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/bench/data_loading.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder), arguments.images)
        kilobytes = mean(file.stat().st_size for file in files) / 1e3
        transform = training_transform()
        speeds = [images_per_second(files, transform) for _ in range(arguments.rounds + 1)][1:]
    versions = " ".join(f"{name} {version(name)}" for name in ("torch", "timm", "pillow"))
    size = f"{SIZE[0]}x{SIZE[1]}, {kilobytes:.0f} kB"
    rows = [[machine_name("cpu"), f"{speed:.2f}", size, QUALITY, versions] for speed in speeds]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["hardware", "images_per_second_per_core", "size", "quality", "versions"], *rows])
    print(f"{median(speeds):.1f} images a second and core ({min(speeds):.1f} to {max(speeds):.1f}), files of {size}")


if __name__ == "__main__":
    main()
