"""How fast batched augmentation is beside timm's pipeline of Pillow images.

    python benchmarks/augmentation.py [--rounds 30] [--batch 128] [--out results/augmentation/speed.csv]

By ViT-Lite's recipe at 32 pixels, on one thread, both in turn in one run: images of uint8 become what a model is fed.
Images are CIFAR-100's where MPVG_DATA names a folder that holds cifar100/cifar100.npz, else pieces of scikit-learn's
two photographs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles
from typing import Any
from unittest import mock

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

import mpvg
from augmentation_agreement import MEAN, SIZE, benchmark_images, to_batch
from mpvg.bench.turns import Work, keep_memory, processor_clock, ratio, take_turns
from mpvg.data.augment import augment, chosen, keys
from mpvg.data.augmentation import Augmentation
from mpvg.data.preprocessing import Preprocessing
from mpvg.files import as_csv, write_atomically
from mpvg.machine import machine_name
from mpvg.train.optimizer import build_optimizer
from mpvg.train.recipe import Recipe
from mpvg.train.steps import take_step

CLASSES, TURNS = 100, 4  # TURNS: batches a turn
STD = (0.2675, 0.2565, 0.2761)
RANDOM = "rand-m9-mstd0.5-inc1"
RECIPE = Augmentation(shift=0, crop_scale=(0.8, 1), interpolation="random", flip=0.5, rand_augment=RANDOM)
FOUR = "mpvg, four batches at once"
MODEL = "mpvg_vit_lite_7_4_32"


def pillow_pipeline(images: Sequence[Image.Image], *, normalised: bool) -> Work:
    """Return timm's pipeline for images, the stacking of a batch included."""
    one = pillow_transform(normalised=normalised)
    return lambda: [torch.stack([one(image) for image in images]) for _ in range(TURNS)]


def pillow_transform(*, normalised: bool, erasing: float = 0.0) -> Callable[[Image.Image], Tensor]:
    """Return what timm's pipeline does to an image."""
    steps: Callable[[Image.Image], Any] = create_transform(
        SIZE, is_training=True, scale=RECIPE.crop_scale, interpolation="random", auto_augment=RANDOM, mean=MEAN,
        std=STD, re_prob=erasing, use_prefetcher=not normalised,
    )  # fmt: skip

    def one(image: Image.Image) -> Tensor:
        try:
            return torch.as_tensor(steps(image))
        except ValueError:  # timm's posterizing asks Pillow for 0 bits about once in 500 images
            return one(image)

    return one


def our_pipeline(pixels: Tensor, *, normalised: bool, at_once: int = 1, every: bool = False) -> Work:
    """Return ours.

    Args:
        pixels: A batch.
        normalised: Normalise it too.
        at_once: Batches that are augmented in one call, as no image depends on its batch.
        every: Work on every image and keep the chosen ones, as on a GPU.
    """
    finish = Preprocessing((SIZE, SIZE), 3, MEAN, STD) if normalised else (lambda batch: batch)
    together, positions = pixels.repeat(at_once, 1, 1, 1), torch.arange(at_once * len(pixels))

    def work() -> None:
        for epoch in range(TURNS // at_once):
            for batch in augment(together, RECIPE, keys(0, epoch, positions), fill=MEAN).split(len(pixels)):
                finish(batch)

    def work_on_every() -> None:
        with mock.patch.object(chosen, "picks_out", return_value=False):
            work()

    return work_on_every if every else work


def training_step(pixels: Tensor) -> Work:
    """Return as many steps of ViT-Lite-7/4 as a turn of the pipelines has batches."""
    torch.manual_seed(0)
    model, recipe = mpvg.create_model(MODEL, num_classes=CLASSES), Recipe(lr=6e-4)
    optimizer, images = build_optimizer(model, recipe), Preprocessing((SIZE, SIZE), 3, MEAN, STD)(pixels)
    labels = torch.arange(len(pixels)) % CLASSES
    return lambda: [take_step(model, optimizer, (images,), labels, recipe) for _ in range(TURNS)]


def measured(pixels: Tensor, *, rounds: int) -> list[dict[str, Any]]:
    """Return the time of a batch in each way, and its ratio to the first of those that it took turns with."""
    pictures = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
    heats: list[dict[str, Callable[[], Work]]] = [
        {
            "training step": lambda: training_step(pixels),
            "mpvg": lambda: our_pipeline(pixels, normalised=False),
            FOUR: lambda: our_pipeline(pixels, normalised=False, at_once=4),
        },
        {
            "timm, to uint8": lambda: pillow_pipeline(pictures, normalised=False),
            "mpvg": lambda: our_pipeline(pixels, normalised=False),
            FOUR: lambda: our_pipeline(pixels, normalised=False, at_once=4),
            "mpvg, every image worked on": lambda: our_pipeline(pixels, normalised=False, every=True),
        },
        {
            "timm, to normalised tensors": lambda: pillow_pipeline(pictures, normalised=True),
            "mpvg": lambda: our_pipeline(pixels, normalised=True),
            FOUR: lambda: our_pipeline(pixels, normalised=True, at_once=4),
        },
    ]
    rows = []
    for heat in heats:
        times = take_turns(list(heat.values()), processor_clock, rounds=rounds, seconds=300)
        for name, found in zip(heat, times, strict=True):
            low, middle, high = (seconds / TURNS * 1e3 for seconds in quantiles(found, n=4))
            compared = ratio(found, times[0])
            rows.append(
                {"work": name, "milliseconds": f"{middle:.3f}", "low": f"{low:.3f}", "high": f"{high:.3f}",
                 "beside": next(iter(heat)), "ratio": f"{compared.median:.4f}", "ratio_low": f"{compared.low:.4f}",
                 "ratio_high": f"{compared.high:.4f}", "rounds": len(found)}
            )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("results/augmentation/speed.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    images, name = benchmark_images(arguments.batch)
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "timm", "pillow"))
    about = {"pixels": f"{SIZE}x{SIZE}", "data": name, "versions": versions}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    load = f"{os.getloadavg()[0]:.1f}"
    where = {"batch": arguments.batch, "hardware": machine_name("cpu"), "threads": 1, "load": load}
    rows = [row | where | about for row in measured(to_batch(images[: arguments.batch]), rounds=arguments.rounds)]
    write_atomically(arguments.out, as_csv(rows))
    for row in rows:
        print(f"{row['work']:36}{row['milliseconds']:>10} ms, {row['ratio']} of {row['beside']}")


if __name__ == "__main__":
    main()
