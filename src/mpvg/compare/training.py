"""One run: a model under one scheme, seed and learning rate, trained, watched on the validation split, tested once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn.functional import cross_entropy

from mpvg.analysis.record import correlation_by_block
from mpvg.checkpoint import Card, save_safetensors
from mpvg.compare.rates import Job
from mpvg.compare.settings import Settings
from mpvg.create import Start, starting_point
from mpvg.data.batches import epoch_batches
from mpvg.data.preprocessing import Preprocessing, eval_batch_size, to_tensors
from mpvg.data.sources import ImageData, Split, absolute_source, split_validation
from mpvg.errors import NonFiniteLossError
from mpvg.train.build import model_arguments
from mpvg.train.dropout import cheapen_dropout
from mpvg.train.freezing import freeze
from mpvg.train.optimizer import build_optimizer, build_schedule, set_rates
from mpvg.train.steps import build_mixup, check_loss, prepare, seed_step, take_step

Progress = Callable[[float, float], None]  # told the part of the steps that is done, and the training loss


@dataclass(frozen=True)
class Length:
    """How long a run is: steps, and images a step."""

    steps: int
    batch_size: int

    def curve_steps(self, val_images: int) -> set[int]:
        """Return when to read the validation accuracy: 5 to 40 times, fewer where that is long beside training."""
        trained_per_reading = self.steps * self.batch_size / val_images
        points = 5 * min(max(int(trained_per_reading / 10), 1), 8)  # multiples of 5, so that one is at four fifths
        return {max(round(self.steps * point / points), 1) for point in range(1, points + 1)}

    @classmethod
    def of(cls, settings: Settings, train_images: int) -> Length:
        batch_size = min(settings.batch_size, train_images)
        return cls(train_images // batch_size * settings.epochs, batch_size)


class Outcome(NamedTuple):
    """What a model does with a split."""

    accuracy: float
    loss: float
    confusion: Tensor  # images by (true class, predicted class)


class Trained(NamedTuple):
    """A model at the end of its training."""

    built: Built
    schedule: Length
    train_images: int
    val_images: int
    val: Outcome
    curve: dict[str, list[float]]


class Built(NamedTuple):
    """A model at the start of its training.

    start: What it starts from.
    told: What of these weights was not taken over, in words.
    """

    model: Any
    preprocessing: Preprocessing
    start: Start
    told: list[str]


def build_model(settings: Settings, scheme: str, data: ImageData, train: Split) -> Built:
    """Create the model for the data's size, channels and classes.

    Args:
        settings: The configuration.
        scheme: The scheme.
        data: The images.
        train: Those to train on.
    """
    start = starting_point(settings.model, scheme, pretrained=settings.pretrained, preserve=settings.preserve)
    arguments = model_arguments(data.image_size, data.channels, len(data.classes))
    model, told = start.build(scheme, **arguments)
    freeze(model, settings.recipe.trains)
    return Built(model, Preprocessing.of(train).with_normalisation(start.origin.normalisation), start, told)


def train_and_test(
    settings: Settings,
    job: Job,
    data: ImageData,
    report: Progress,
    *,
    device: str = "cpu",
    weights: Path | None = None,
) -> dict[str, Any]:
    """Train one scheme with one seed and test it.

    The split, the order of batches, the shifts and the initial value of every parameter that schemes share depend on
    the seed alone, so that differences between schemes of one seed are paired.

    Args:
        settings: The configuration.
        job: Scheme, seed and learning rate.
        data: The images.
        report: Called about a hundred times.
        device: Where to compute.
        weights: The .safetensors file to keep the trained model in.

    Returns:
        A JSON-able record: what came out on the test split, the learning curve, correlations by depth, counts.

    Raises:
        NonFiniteLossError: The training loss is NaN or infinite.
    """
    started = time.perf_counter()
    trained = train(settings, job, data, report, device=device)
    model, preprocessing, start, told = trained.built
    if weights is not None:
        save_safetensors(weights, _card(settings, job, data, preprocessing, start), model)
    pixels, labels = to_tensors(data.test, device)
    test = evaluate(model, preprocessing, pixels, labels)
    shown = torch.linspace(0, len(pixels) - 1, min(len(pixels), eval_batch_size(preprocessing.size))).long()
    correlations = correlation_by_block(model.eval(), preprocessing(pixels[shown]))  # spread: files come by class
    return {
        **job._asdict(),
        "accuracy": test.accuracy,
        "loss": test.loss if isfinite(test.loss) else None,
        "val_accuracy": trained.val.accuracy,
        "confusion": _nonzero(test.confusion),
        "built_as": str(model.scheme),
        "not_taken_over": told,
        "first_block": model.plan.blocks[0] is not None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": trained.schedule.steps,
        "train_images": trained.train_images,
        "val_images": trained.val_images,
        "seconds": time.perf_counter() - started,
        "curve": trained.curve,
        "correlation": {"block": list(correlations), "value": list(correlations.values())} if correlations else None,
    }


def try_rate(settings: Settings, job: Job, data: ImageData, report: Progress, *, device: str = "cpu") -> dict[str, Any]:
    """Train one scheme with one learning rate and read the validation split; the test split is not touched.

    Args:
        settings: The configuration.
        job: Scheme, seed and learning rate.
        data: The images.
        report: Called about a hundred times.
        device: Where to compute.

    Returns:
        A JSON-able record; its accuracy and loss are None where a loss became NaN or infinite.
    """
    started = time.perf_counter()
    found: dict[str, float | None] = {"val_accuracy": None, "val_loss": None}
    with contextlib.suppress(NonFiniteLossError):
        val = train(settings, job, data, report, device=device).val
        if isfinite(val.loss):
            found = {"val_accuracy": val.accuracy, "val_loss": val.loss}
    return {**job._asdict(), **found, "seconds": time.perf_counter() - started}


def train(settings: Settings, job: Job, data: ImageData, report: Progress, *, device: str = "cpu") -> Trained:
    """Train one scheme with one seed and learning rate.

    Args:
        settings: The configuration.
        job: Scheme, seed and learning rate.
        data: The images, of which the test split is not used.
        report: Called about a hundred times.
        device: Where to compute.

    Returns:
        The model and what was seen of it on the way.

    Raises:
        NonFiniteLossError: The training loss is NaN or infinite.
    """
    assert job.lr is not None
    recipe = replace(settings.recipe, lr=job.lr)
    train, val = split_validation(data, fraction=settings.val_fraction, seed=job.seed)
    pixels, labels = to_tensors(train, device)
    val_pixels, val_labels = to_tensors(val, device)
    torch.manual_seed(job.seed)
    built = build_model(settings, job.scheme, data, train)
    model, preprocessing = built.model.to(device), built.preprocessing
    if device == "cpu":
        cheapen_dropout(model)
    schedule = Length.of(settings, len(train))
    optimizer = build_optimizer(model, recipe)
    steps_an_epoch = schedule.steps // settings.epochs
    rates = build_schedule(
        optimizer,
        recipe.schedule,
        steps=schedule.steps,
        epochs=settings.epochs,
        steps_an_epoch=steps_an_epoch,
    )
    average = None if recipe.ema_decay is None else ModelEmaV3(model, decay=recipe.ema_decay)
    evaluated = average.module if average is not None and recipe.ema_evaluate else model
    mixup = build_mixup(recipe, len(data.classes), schedule.batch_size)
    curve: dict[str, list[float]] = {"step": [], "train_loss": [], "val_accuracy": []}
    points = schedule.curve_steps(len(val))
    losses: list[float] = []
    step = 0
    for epoch in range(settings.epochs):
        for batch in epoch_batches(
            pixels,
            labels,
            batch_size=schedule.batch_size,
            augmentation=recipe.augmentation,
            mean=preprocessing.mean,
            seed=job.seed,
            epoch=epoch,
        ):
            seed_step(job.seed, step)
            images, targets = prepare(batch, recipe, preprocessing, mixup, seed=job.seed, epoch=epoch)
            loss = take_step(model, optimizer, images, targets, recipe)
            if average is not None:
                average.update(model)
            step += 1
            set_rates(rates, recipe.schedule, step=step, steps_an_epoch=steps_an_epoch)
            losses.append(loss)
            check_loss(loss, what=str(job), epoch=epoch + 1, step=step, lr=job.lr)
            if step in points:
                outcome = evaluate(evaluated, preprocessing, val_pixels, val_labels)
                curve["step"].append(step)
                curve["train_loss"].append(sum(losses) / len(losses))
                curve["val_accuracy"].append(outcome.accuracy)
                losses.clear()
            if step % max(schedule.steps // 100, 1) == 0:
                report(step / schedule.steps, loss)
    return Trained(built._replace(model=evaluated), schedule, len(train), len(val), outcome, curve)


@torch.inference_mode()
def evaluate(model: Any, preprocessing: Preprocessing, pixels: Tensor, labels: Tensor) -> Outcome:
    """Return what a model does with images, in eval mode.

    Args:
        model: The model.
        preprocessing: Of its images.
        pixels: Images (N, C, H, W) in uint8.
        labels: Classes (N,).

    Returns:
        Accuracy, mean cross-entropy and confusions.
    """
    model.eval()
    batches = pixels.split(eval_batch_size(preprocessing.size))
    logits = torch.cat([model(preprocessing(batch)) for batch in batches]).double()
    classes = logits.shape[1]
    confusion = (labels * classes + logits.argmax(dim=1)).bincount(minlength=classes**2).view(classes, classes)
    accuracy = confusion.diagonal().sum().item() / len(labels)
    return Outcome(accuracy, cross_entropy(logits, labels).item(), confusion)


def _card(settings: Settings, job: Job, data: ImageData, preprocessing: Preprocessing, start: Start) -> Card:
    return Card(
        model=start.name,
        scheme=job.scheme,
        arguments={**start.arguments, **model_arguments(data.image_size, data.channels, len(data.classes))},
        preprocessing=preprocessing,
        classes=data.classes,
        data={
            "source": absolute_source(settings.data),
            "img_size": settings.img_size,
            "val_fraction": settings.val_fraction,
            "skip_bad_images": settings.skip_bad_images,
            "seed": job.seed,
        },
    )


def _nonzero(confusion: Tensor) -> list[list[int]]:
    """Return [true class, predicted class, images] where there are images."""
    cells = confusion.nonzero()
    return torch.cat([cells, confusion[cells[:, 0], cells[:, 1], None]], dim=1).tolist()
