"""The recipes' table (architectures and their official code) as data, and what is built from a recipe's file."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import yaml

from mpvg.data.augmentation import Augmentation
from mpvg.train.recipe import Recipe, Schedule

FOLDER = Path(__file__).parents[1] / "recipes"
COCO, ADE20K = "coco/mask_rcnn_vit_adapter_tiny_3x_ms", "ade20k/upernet_vit_adapter_tiny_160k"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
INCREASING = {
    "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
    "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY",
    "TranslateXRel", "TranslateYRel",
}  # fmt: skip


def cosine(peak: float, low: float, part: float) -> float:
    return low + (peak - low) / 2 * (1 + math.cos(math.pi * part))


def warmed(epoch: float, *, peak: float, start: float, low: float, warmup: float, cosine_epochs: float) -> float:
    """The rate of a cosine that runs below its linear warm-up."""
    if epoch < warmup:
        return start + (peak - start) * epoch / warmup
    return cosine(peak, low, epoch / cosine_epochs) if epoch < cosine_epochs else low


def deit_rate(epoch: int, _: int) -> float:
    """The scheduler is stepped with the epoch that has just ended."""
    return warmed(max(epoch - 1, 0), peak=1e-3, start=1e-6, low=1e-5, warmup=5, cosine_epochs=300)


def swin_rate(epoch: int, step: int) -> float:
    """Counted in steps, the last one's number; the cosine begins after the warm-up."""
    n = 1_281_167 // 1024
    at = max(epoch * n + step - 1, 0)
    if at < 20 * n:
        return 1e-6 + (1e-3 - 1e-6) * at / (20 * n)
    return cosine(1e-3, 1e-5, (at - 20 * n) / (280 * n))


def t2t_rate(epoch: int, _: int) -> float:
    return warmed(epoch, peak=1e-3, start=1e-6, low=1e-5, warmup=10, cosine_epochs=300)


def vit_lite_rate(epoch: int, _: int) -> float:
    return warmed(epoch, peak=6e-4, start=1e-6, low=1e-5, warmup=10, cosine_epochs=300)


def finetune_rate(epoch: int, _: int) -> float:
    return cosine(0.05, 2e-4, epoch / 60)


@dataclass(frozen=True)
class Row:
    """One column of the table; what most have is the default."""

    model: str
    batch: int
    rate: Callable[[int, int], float]
    undecayed: frozenset[str]  # beside one-dimensional tensors and biases
    seed: int = 0
    opt: str = "AdamW"
    images: int = 1_281_167
    classes: int = 1000
    side: int = 224
    epochs: int = 300
    weight_decay: float = 0.05
    arguments: dict[str, float] = field(default_factory=lambda: {"drop_path_rate": 0.1})
    smoothing: float = 0.1
    mixup: tuple[float, float, float, float] | None = (0.8, 1.0, 1.0, 0.5)
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    erasing: float = 0.25
    erase_after_mixup: bool = False
    repeats: int = 1
    draws: int = 1_281_167
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    padding: int = 0
    interpolation: str = "bicubic"
    crop_pct: float | None = 0.875
    eval_interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    ema: tuple[float | None, bool] = (None, False)
    clipping: float | None = None
    precision: str = "16-mixed"
    paper: tuple[str, ...] = ()


_TABLE_AND_TOKEN = frozenset({"pos_embed", "cls_token"})
_DEIT: dict[str, Any] = {
    "batch": 1024, "rate": deit_rate, "undecayed": _TABLE_AND_TOKEN, "repeats": 3, "draws": 1_281_024,
    "ema": (0.99996, False),
}  # fmt: skip
ROWS = {
    "imagenet1k/deit_tiny": Row("mpvg_deit_tiny_patch16_224", **_DEIT, paper=("72.14", "72.94", "73.17", "73.51")),
    "imagenet1k/deit_small": Row("mpvg_deit_small_patch16_224", **_DEIT, paper=("79.81", "80.39", "80.38", "80.61")),
    "imagenet1k/deit_base": Row("mpvg_deit_base_patch16_224", **_DEIT, paper=("81.85", "82.15", "82.21", "82.42")),
    "imagenet1k/ceit_tiny": Row("mpvg_ceit_tiny_patch16_224", **_DEIT, paper=("76.62", "76.89", "77.14", "77.20")),
    "imagenet1k/swin_tiny": Row(
        "mpvg_swin_tiny_patch4_window7_224",
        1024,
        swin_rate,
        frozenset({"absolute_pos_embed", "pos_embed", "relative_position_bias_table"}),
        arguments={"drop_path_rate": 0.2},
        clipping=5.0,
        paper=("81.37", "81.48", "81.52", "81.64"),
    ),
    "imagenet1k/t2t_vit_7": Row(
        "mpvg_t2t_vit_7",
        512,
        t2t_rate,
        frozenset({"cls_token"}),
        seed=42,
        epochs=310,
        weight_decay=0.03,
        erase_after_mixup=True,
        interpolation="random",
        crop_pct=0.9,
        ema=(0.99996, True),
        paper=("71.76", "72.01", "71.91", "72.28"),
    ),
    "cifar100/vit_lite_7_4": Row(
        "mpvg_vit_lite_7_4_32",
        128,
        vit_lite_rate,
        frozenset(),
        seed=42,
        images=50_000,
        draws=50_000,
        classes=100,
        side=32,
        epochs=310,
        weight_decay=0.06,
        arguments={"drop_path_rate": 0.1, "attn_drop_rate": 0.1},
        erase_after_mixup=True,
        interpolation="random",
        crop_scale=(0.8, 1.0),
        crop_pct=None,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        paper=("74.90", "75.52", "76.67", "76.87"),
    ),
    "cifar100/t2t_vit_7_finetune": Row(
        "mpvg_t2t_vit_7",
        128,
        finetune_rate,
        frozenset(),
        opt="SGD",
        images=50_000,
        draws=50_000,
        classes=100,
        epochs=60,
        weight_decay=5e-4,
        smoothing=0.0,
        mixup=None,
        rand_augment=None,
        erasing=0.0,
        crop_scale=None,
        padding=28,
        interpolation="bilinear",
        crop_pct=1.0,
        eval_interpolation="bilinear",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        precision="32-true",
        paper=("83.22", "83.41", "83.39", "83.51"),
    ),
}


def read(name: str) -> dict[str, Any]:
    """Return what a recipe's file says."""
    found: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return found


def recipe_of(config: dict[str, Any]) -> Recipe:
    """Return the recipe of a file, as the command line would read it."""
    choices = dict(config["model"]["recipe"])
    schedule = Schedule(**choices.pop("schedule"))
    drawn: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in choices.pop("augmentation").items()
    }
    return Recipe(**choices, schedule=schedule, augmentation=Augmentation(**drawn))


@functools.lru_cache(maxsize=2)
def model_of(name: str, scheme: str, classes: int) -> Any:
    return timm.create_model(name, scheme=scheme, num_classes=classes)
