"""How fast ViT-Lite-7/4 trains here, beside a plain prototype: python benchmarks/vit_lite_training.py [--rounds 12]

The prototype is what one would write down first: a class token, attention in products and a softmax, PyTorch's AdamW,
and images through timm's pipeline. Ours is the step of `mpvg compare` and `mpvg fit` by the recipe
recipes/cifar100/vit_lite_7_4.yaml: augmentation on the device, mixing and erasing. All take turns in one process.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.metadata import version
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import mpvg
from augmentation import RANDOM, STD, pillow_transform
from augmentation_agreement import MEAN, SIZE, benchmark_images, to_batch
from mpvg.bench.turns import Work, gpu_clock, processor_clock, ratio, take_turns
from mpvg.data.augmentation import Augmentation
from mpvg.data.batch import Batch
from mpvg.data.batches import epoch_batches
from mpvg.data.preprocessing import Preprocessing
from mpvg.files import as_csv, write_atomically
from mpvg.machine import machine_name
from mpvg.train.dropout import cheapen_dropout
from mpvg.train.freezing import set_training_mode
from mpvg.train.optimizer import build_optimizer
from mpvg.train.recipe import Recipe
from mpvg.train.steps import build_mixup, prepare, training_step

BATCH, CLASSES, WIDTH, HEADS, LAYERS = 128, 100, 256, 4, 7
RECIPE = Recipe(
    lr=6e-4,
    weight_decay=0.06,
    augmentation=Augmentation(
        shift=0.0, crop_scale=(0.8, 1.0), interpolation="random", flip=0.5, rand_augment=RANDOM, erasing=0.25,
        erase_after_mixup=True, mixup=0.8, cutmix=1.0,
    ),
)  # fmt: skip
PROTOTYPE, WITH_IMAGES = "prototype", "prototype, images by timm's pipeline"


class PlainLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        weights = F.dropout((q @ k.mT * (WIDTH // HEADS) ** -0.5).softmax(-1), 0.1, self.training)
        x = self.norm2(x + self.proj((weights @ v).transpose(1, 2).flatten(2)))
        return x + self.fc2(F.gelu(self.fc1(x)))


class PlainViTLite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.token, self.table = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 65, WIDTH) * 0.2)
        self.layers = nn.Sequential(*(PlainLayer() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(images), -1, -1), tokens], 1) + self.table
        return self.head(self.norm(self.layers(x))[:, 0])


def autocast(device: torch.device, bf16: bool) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def compiled(model: nn.Module, device: torch.device) -> None:
    """Compile a model, on a GPU with CUDA graphs."""
    model.compile(mode="reduce-overhead" if device.type == "cuda" else "default")


def prototype(pixels: Tensor, *, bf16: bool, images: bool) -> Work:
    """Return a step of the prototype.

    Args:
        pixels: A batch.
        bf16: Compile it, and compute in bfloat16 where autocast allows.
        images: Send the images through timm's pipeline at each step.
    """
    torch.manual_seed(0)
    device = pixels.device
    model: Any = PlainViTLite().to(device).train()
    if bf16:
        compiled(model, device)
    optimizer = torch.optim.AdamW(model.parameters(), 6e-4)
    normalise, labels = Preprocessing((SIZE, SIZE), 3, MEAN, STD), torch.arange(len(pixels), device=device) % CLASSES
    pictures = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
    one = pillow_transform(normalised=True, erasing=0.25)

    def step() -> None:
        batch = torch.stack([one(picture) for picture in pictures]).to(device) if images else normalise(pixels)
        with autocast(device, bf16):
            loss = F.cross_entropy(model(batch), labels, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def ours(pixels: Tensor, *, scheme: str, bf16: bool, images: bool) -> Work:
    """Return a step of ours; arguments are those of `prototype`."""
    torch.manual_seed(0)
    device = pixels.device
    model = mpvg.create_model("mpvg_vit_lite_7_4_32", scheme=scheme, num_classes=CLASSES).to(device)
    set_training_mode(model, "all")
    if device.type == "cpu":
        cheapen_dropout(model)
    if bf16:
        compiled(model, device)
    optimizer, mixup = build_optimizer(model, RECIPE), build_mixup(RECIPE, CLASSES, BATCH)
    normalise, labels = Preprocessing((SIZE, SIZE), 3, MEAN, STD), torch.arange(len(pixels), device=device) % CLASSES
    drawn = batches(pixels.repeat(64, 1, 1, 1), labels.repeat(64))

    def step() -> None:
        inputs, targets = normalise(pixels), labels
        if images:
            inputs, targets = prepare(next(drawn), RECIPE, normalise, mixup, seed=0, epoch=0)
        with autocast(device, bf16):
            loss = training_step(model, (inputs,), targets, RECIPE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def batches(pixels: Tensor, labels: Tensor) -> Iterator[Batch]:
    for epoch in count():
        yield from epoch_batches(
            pixels, labels, batch_size=BATCH, augmentation=RECIPE.augmentation, mean=MEAN, seed=0, epoch=epoch
        )


def measured(pixels: Tensor, *, rounds: int) -> list[dict[str, Any]]:
    """Return images a second of each way, and how many times faster than the prototype it is."""
    rows = []
    clock = gpu_clock if pixels.device.type == "cuda" else processor_clock
    for bf16 in (False, True):
        heats: list[dict[str, Callable[[], Work]]] = [
            {PROTOTYPE: lambda bf16=bf16: prototype(pixels, bf16=bf16, images=False)},  # type: ignore[misc]
            {WITH_IMAGES: lambda bf16=bf16: prototype(pixels, bf16=bf16, images=True)},  # type: ignore[misc]
        ]
        for scheme in ("default", "mpvg"):
            for heat, images in zip(heats, (False, True), strict=True):
                name = f"mpvg, scheme {scheme}" + (", images augmented and mixed" if images else "")
                heat[name] = lambda scheme=scheme, images=images, bf16=bf16: ours(  # type: ignore[misc]
                    pixels, scheme=scheme, bf16=bf16, images=images
                )
        for heat in heats:
            times = take_turns(list(heat.values()), clock, rounds=rounds, seconds=600)
            for name, found in zip(heat, times, strict=True):
                faster = ratio(times[0], found)
                rows.append(
                    {"work": name, "precision": "bfloat16, compiled" if bf16 else "float32",
                     "images_per_second": f"{BATCH / median(found):.2f}", "beside": next(iter(heat)),
                     "faster": f"{faster.median:.4f}", "faster_low": f"{faster.low:.4f}",
                     "faster_high": f"{faster.high:.4f}", "rounds": len(found)}
                )  # fmt: skip
                print(rows[-1]["work"], rows[-1]["precision"], rows[-1]["images_per_second"], "images/s", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("results/recipes/vit_lite_training.csv"))
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    arguments = parser.parse_args()
    images, name = benchmark_images(BATCH)
    where = {
        "batch": BATCH, "hardware": machine_name(str(arguments.device)), "threads": torch.get_num_threads(),
        "data": name, "load": f"{os.getloadavg()[0]:.1f}",
        "versions": f"torch {version('torch')}, timm {version('timm')}",
    }  # fmt: skip
    rows = [row | where for row in measured(to_batch(images[:BATCH]).to(arguments.device), rounds=arguments.rounds)]
    write_atomically(arguments.out, as_csv(rows))


if __name__ == "__main__":
    main()
