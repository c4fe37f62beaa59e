"""Each recipe's file against the table: what is built of it, and that a changed value is noticed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data.auto_augment import RandAugment
from torchvision.transforms import CenterCrop, RandomCrop, RandomHorizontalFlip, Resize

from mpvg.cost import cost
from mpvg.cost.hours import training_flops
from mpvg.data.batch import Batch
from mpvg.train.data import ImageDataModule
from mpvg.train.optimizer import build_optimizer, build_schedule, set_rates
from mpvg.train.steps import build_mixup, prepare, training_step
from recipes import ADE20K, COCO, FOLDER, INCREASING, ROWS, Row, model_of, read, recipe_of

LIKE_DEIT_TINY = ("imagenet1k/deit_small", "imagenet1k/deit_base")
EVERY = pytest.mark.parametrize("name", sorted(ROWS))


def test_every_recipe_has_its_row() -> None:
    names = {str(file.relative_to(FOLDER).with_suffix("")) for file in FOLDER.rglob("*.yaml")}
    assert {name for name in names if "task" not in read(name)} == set(ROWS)
    assert {name for name in names if "task" in read(name)} == {COCO, ADE20K}


def check(config: dict[str, Any], row: Row) -> None:
    """Build all that a recipe asks for, and compare it with the table."""
    model_settings, data, trainer = config["model"], config["data"], config["trainer"]
    recipe = recipe_of(config)
    assert (model_settings["name"], data["batch_size"], config["seed_everything"]) == (row.model, row.batch, row.seed)
    assert model_settings["arguments"] == row.arguments
    assert model_settings["scheme"] == "mpvg"
    assert trainer.get("gradient_clip_val") == row.clipping
    assert (trainer["max_epochs"], trainer["precision"]) == (row.epochs, row.precision)
    assert (recipe.ema_decay, recipe.ema_evaluate) == row.ema
    check_optimizer(config, row)
    check_images(config, row)
    check_loss(config, row)


def check_optimizer(config: dict[str, Any], row: Row) -> None:
    recipe = recipe_of(config).for_batches_of(config["data"]["batch_size"], model=row.model)
    for scheme in ("mpvg", "default"):
        model = model_of(row.model, scheme, row.classes)
        optimizer = build_optimizer(model, recipe, fused=False)
        assert type(optimizer).__name__ == row.opt
        if row.opt == "AdamW":
            assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)
        else:
            assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, False)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        steps = row.draws // row.batch
        schedule = build_schedule(
            optimizer, recipe.schedule, steps=steps * row.epochs, epochs=row.epochs, steps_an_epoch=steps
        )
        for epoch in (0, 1, 2, 5, 6, 10, 11, 20, 21, 59, 150, 299, row.epochs - 1):
            if epoch >= row.epochs:
                continue
            for step in (0, 1, steps - 1):
                set_rates(schedule, recipe.schedule, step=epoch * steps + step, steps_an_epoch=steps)
                head = row.rate(epoch, step)
                seen = set()
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        name = names[id(parameter)]
                        seen.add(name)
                        expected = head
                        if row.opt == "SGD" and not name.startswith("head."):  # 0.05 and 0.0005, both down to 0.0002
                            expected = 2e-4 + (head - 2e-4) * (5e-4 - 2e-4) / (0.05 - 2e-4)
                        assert group["lr"] == pytest.approx(expected, rel=1e-6), (name, epoch, step)
                assert seen == {name for name, one in model.named_parameters() if one.requires_grad}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                named = name in row.undecayed or name.endswith(tuple(f".attn.{one}" for one in row.undecayed))
                free = parameter.ndim <= 1 or name.endswith(".bias") or named
                assert group["weight_decay"] == (0.0 if free and row.opt == "AdamW" else row.weight_decay), name


def check_images(config: dict[str, Any], row: Row) -> None:
    given = {key: value for key, value in config["data"].items() if key not in ("source", "batch_size")}
    data = ImageDataModule(**{**given, "source": "generated", "batch_size": 4})
    assert (data.val_fraction, data.img_size, data.normalisation) == (0.0, row.side, (row.mean, row.std))
    drawn = recipe_of(config).augmentation
    assert (drawn.shift, drawn.erasing, drawn.repeats, drawn.erase_after_mixup) == (
        0.0, row.erasing, row.repeats, row.erase_after_mixup
    )  # fmt: skip
    assert (drawn.crop_scale, drawn.padding, drawn.flip, drawn.rand_augment, drawn.interpolation) == (
        row.crop_scale, row.padding, 0.5, row.rand_augment, row.interpolation
    )  # fmt: skip
    assert drawn.crop_ratio == (3 / 4, 4 / 3)
    data.load((row.side, row.side), augmentation=drawn)
    data.preprocessing(None)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=0, world_size=1, current_epoch=0, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    if data.workers is None:
        assert (row.side, data.image_size) == (32, (32, 32))
        return
    loaders: Any = data.train_dataloader()
    pieces = loaders.loader._loader.dataset.transform.transforms
    by_kind = {type(piece).__name__: piece for piece in pieces}
    flip = next(piece for piece in pieces if isinstance(piece, RandomHorizontalFlip))
    assert flip.p == 0.5
    if row.crop_scale is not None:
        crop = by_kind["RandomResizedCropAndInterpolation"]
        assert (tuple(crop.scale), tuple(crop.ratio)) == (row.crop_scale, (3 / 4, 4 / 3))
        kinds = crop.interpolation if isinstance(crop.interpolation, tuple | list) else [crop.interpolation]
        words = {getattr(kind, "value", str(kind)) for kind in kinds}
        assert words == ({"bilinear", "bicubic"} if row.interpolation == "random" else {row.interpolation})
        (ops,) = (piece for piece in pieces if isinstance(piece, RandAugment))
        assert (ops.num_layers, {op.name for op in ops.ops}) == (2, INCREASING)
        for op in ops.ops:
            assert (op.prob, op.magnitude, op.magnitude_std) == (0.5, 9, 0.5)
            assert op.hparams["img_mean"] == tuple(min(255, round(255 * part)) for part in row.mean)
    else:
        padded = next(piece for piece in pieces if isinstance(piece, RandomCrop))
        assert (padded.padding, tuple(padded.size)) == (28, (224, 224))
    tested: Any = data.test_dataloader()
    resize = next(piece for piece in tested._loader.dataset.transform.transforms if isinstance(piece, Resize))
    side = resize.size if isinstance(resize.size, int) else resize.size[0]
    assert row.crop_pct is not None
    assert side == int(224 / row.crop_pct)
    assert resize.interpolation.value == row.eval_interpolation
    assert any(isinstance(piece, CenterCrop) for piece in tested._loader.dataset.transform.transforms)


def check_loss(config: dict[str, Any], row: Row) -> None:
    recipe = recipe_of(config)
    mixup = build_mixup(recipe, row.classes, 8)
    assert recipe.label_smoothing == row.smoothing
    labels = torch.arange(8) % row.classes
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (8, 3, 16, 16), dtype=np.uint8))
    batch = Batch(pixels, labels, torch.arange(8))
    np.random.seed(0)
    images, targets = prepare(batch, recipe, lambda pixels: pixels.float() / 255, mixup, seed=0, epoch=0)
    assert images.shape == pixels.shape
    logits = torch.randn(8, row.classes)
    loss = training_step(lambda _: logits, (images,), targets, recipe)
    if row.mixup is None:
        assert mixup is None
        assert loss.item() == pytest.approx(-logits.log_softmax(1)[torch.arange(8), labels].mean().item(), rel=1e-5)
        return
    assert mixup is not None
    assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.mix_prob, mixup.switch_prob) == row.mixup
    assert mixup.mode == "batch"
    own = torch.full((8, row.classes), row.smoothing / row.classes)
    own[torch.arange(8), labels] += 1 - row.smoothing
    lam = ((targets[0, 0] - own[7, 0]) / (own[0, 0] - own[7, 0])).item()
    expected = lam * own + (1 - lam) * own.flip(0)
    assert torch.allclose(targets, expected, atol=1e-6)
    assert loss.item() == pytest.approx(-(expected * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5)


@EVERY
def test_what_is_built_is_the_table(name: str) -> None:
    check(read(name), ROWS[name])


def leaves(config: dict[str, Any], *path: str) -> Iterator[tuple[str, ...]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, *path, key)
        else:
            yield (*path, key)


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 0.9 if isinstance(value, float) and value else value + 1
    if isinstance(value, list):
        return [*value[:-1], value[-1] * 0.9]
    others = {
        "bicubic": "bilinear", "bilinear": "bicubic", "random": "bicubic", "epoch": "step", "step": "epoch",
        "adamw": "adam", "momentum": "sgd", "rand-m9-mstd0.5-inc1": "rand-m9-mstd0.5",
        "16-mixed": "32-true", "32-true": "16-mixed", "mpvg": "lape",
    }  # fmt: skip
    return others.get(value, f"{value}_other")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LIKE_DEIT_TINY else ()) for name in sorted(ROWS)]
)
def test_a_changed_value_is_noticed(name: str) -> None:
    config = read(name)
    left_alone = {("data", "source"), ("data", "workers")}
    for path in leaves(config):
        if path in left_alone:
            continue
        other = copy.deepcopy(config)
        place = other
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = changed(place[path[-1]])
        try:
            check(other, ROWS[name])
        except (AssertionError, RuntimeError, TypeError, ValueError):
            continue
        pytest.fail(f"{'.'.join(path)} may change and nothing is noticed")


@EVERY
def test_the_header(name: str) -> None:
    """Its command names the file, its figures are the paper's and those that `mpvg cost` counts."""
    text, row = (FOLDER / f"{name}.yaml").read_text(), ROWS[name]
    header = {line[2:].split(":")[0].strip(): line for line in text.splitlines() if line.startswith("# ")}
    assert f"#   mpvg fit --config recipes/{name}.yaml --data DIR" in text
    labels = zip(("Default", "LaPE", "PVG", "MPVG"), row.paper, strict=True)
    assert ", ".join(f"{label} {figure}" for label, figure in labels) in header["Paper"]
    assert {"Scheme", "Hardware", "Time", "Ours", "Debug"} < header.keys()
    with torch.device("meta"):
        model = timm.create_model(row.model, scheme="mpvg", num_classes=row.classes)
    flops = training_flops(cost(model).flops(), epochs=row.epochs, images=row.draws)
    assert f" {flops / 1e18:.3f} x 10^18 FLOPs" in header["Time"]
    hours = flops / 1e13 / 3600
    assert f" {hours:.1f} hours" in header["Time"] or f" {hours:.0f} hours" in header["Time"]
