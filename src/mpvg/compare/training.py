"""One run: a model under one scheme, seed and learning rate, trained, watched on the validation split, tested once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn.functional import cross_entropy

from mpvg.analysis.record import correlation_by_block
from mpvg.checkpoint import save_safetensors
from mpvg.compare.feed import Feed, Inputs, feed_of
from mpvg.compare.rates import Job
from mpvg.compare.settings import Settings
from mpvg.create import Start, starting_point
from mpvg.data.holdout import split_validation
from mpvg.data.splits import LabelledSet
from mpvg.errors import NonFiniteLossError
from mpvg.train.dropout import cheapen_dropout
from mpvg.train.freezing import freeze
from mpvg.train.optimizer import build_optimizer, build_schedule, set_rates
from mpvg.train.steps import check_loss, seed_step, take_step

Progress = Callable[[float, float], None]  # told the part of the steps that is done, and the training loss


@dataclass(frozen=True)
class Length:
    """How long a run is: steps, and samples a step."""

    steps: int
    batch_size: int

    def curve_steps(self, val_samples: int) -> set[int]:
        """Return when to read the validation accuracy: 5 to 40 times, fewer where that is long beside training."""
        trained_per_reading = self.steps * self.batch_size / val_samples
        points = 5 * min(max(int(trained_per_reading / 10), 1), 8)  # multiples of 5, so that one is at four fifths
        return {max(round(self.steps * point / points), 1) for point in range(1, points + 1)}

    @classmethod
    def of(cls, settings: Settings, train_samples: int) -> Length:
        batch_size = min(settings.batch_size, train_samples)
        return cls(train_samples // batch_size * settings.epochs, batch_size)


class Outcome(NamedTuple):
    """What a model does with a split."""

    accuracy: float
    loss: float
    confusion: Tensor  # samples by (true class, predicted class)


class Trained(NamedTuple):
    """A model at the end of its training."""

    built: Built
    schedule: Length
    train_samples: int
    val_samples: int
    val: Outcome
    curve: dict[str, list[float]]


class Built(NamedTuple):
    """A model at the start of its training.

    feed: What gives it its samples.
    start: What it starts from.
    told: What of these weights was not taken over, in words.
    """

    model: Any
    feed: Feed
    start: Start
    told: list[str]


def build_model(settings: Settings, scheme: str, data: LabelledSet, train: Any, *, device: str = "cpu") -> Built:
    """Create the model for the data's sizes and classes.

    Args:
        settings: The configuration.
        scheme: The scheme.
        data: The labelled set.
        train: The split to train on.
        device: Where to compute.
    """
    start = starting_point(settings.model, scheme, pretrained=settings.pretrained, preserve=settings.preserve)
    feed = feed_of(settings, data, train, start=start, device=device)
    model, told = start.build(scheme, **feed.model_arguments)
    freeze(model, settings.recipe.trains)
    return Built(model.to(device), feed, start, told)


def train_and_test(
    settings: Settings,
    job: Job,
    data: LabelledSet,
    report: Progress,
    *,
    device: str = "cpu",
    weights: Path | None = None,
) -> dict[str, Any]:
    """Train one scheme with one seed and test it.

    The split, the order of batches, what is drawn of a sample and the initial value of every parameter that schemes
    share depend on the seed alone, so that differences between schemes of one seed are paired.

    Args:
        settings: The configuration.
        job: Scheme, seed and learning rate.
        data: The labelled set.
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
    model, feed, start, told = trained.built
    if weights is not None:
        card = feed.card(settings, scheme=job.scheme, seed=job.seed, start=start, classes=data.classes)
        save_safetensors(weights, card, model)
    tested = feed.place(data.test)
    test = evaluate(model, feed.readings(tested))
    correlations = correlation_by_block(model.eval(), *feed.sample(tested))
    shuffled = feed.shuffled(tested)
    return {
        **job._asdict(),
        "accuracy": test.accuracy,
        "loss": test.loss if isfinite(test.loss) else None,
        "val_accuracy": trained.val.accuracy,
        "shuffled_accuracy": None if shuffled is None else evaluate(model, feed.readings(shuffled)).accuracy,
        "confusion": _nonzero(test.confusion),
        "built_as": str(model.scheme),
        "not_taken_over": told,
        "first_block": model.plan.blocks[0] is not None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": trained.schedule.steps,
        "train_samples": trained.train_samples,
        "val_samples": trained.val_samples,
        "seconds": time.perf_counter() - started,
        "curve": trained.curve,
        "correlation": {"block": list(correlations), "value": list(correlations.values())} if correlations else None,
    }


def try_rate(
    settings: Settings, job: Job, data: LabelledSet, report: Progress, *, device: str = "cpu"
) -> dict[str, Any]:
    """Train one scheme with one learning rate and read the validation split; the test split is not touched.

    Args:
        settings: The configuration.
        job: Scheme, seed and learning rate.
        data: The labelled set.
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


def train(settings: Settings, job: Job, data: LabelledSet, report: Progress, *, device: str = "cpu") -> Trained:
    """Train one scheme with one seed and learning rate.

    Args:
        settings: The configuration.
        job: Scheme, seed and learning rate.
        data: The labelled set, of which the test split is not used.
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
    torch.manual_seed(job.seed)
    built = build_model(settings, job.scheme, data, train, device=device)
    model, feed = built.model, built.feed
    trained, watched = feed.place(train), feed.place(val)
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
    curve: dict[str, list[float]] = {"step": [], "train_loss": [], "val_accuracy": []}
    points = schedule.curve_steps(len(val))
    losses: list[float] = []
    step = 0
    for epoch in range(settings.epochs):
        for batch in feed.batches(trained, batch_size=schedule.batch_size, seed=job.seed, epoch=epoch):
            seed_step(job.seed, step)
            inputs, targets = feed.prepare(batch, seed=job.seed, epoch=epoch)
            loss = take_step(model, optimizer, inputs, targets, recipe)
            if average is not None:
                average.update(model)
            step += 1
            set_rates(rates, recipe.schedule, step=step, steps_an_epoch=steps_an_epoch)
            losses.append(loss)
            check_loss(loss, what=str(job), epoch=epoch + 1, step=step, lr=job.lr)
            if step in points:
                outcome = evaluate(evaluated, feed.readings(watched))
                curve["step"].append(step)
                curve["train_loss"].append(sum(losses) / len(losses))
                curve["val_accuracy"].append(outcome.accuracy)
                losses.clear()
            if step % max(schedule.steps // 100, 1) == 0:
                report(step / schedule.steps, loss)
    return Trained(built._replace(model=evaluated), schedule, len(train), len(val), outcome, curve)


@torch.inference_mode()
def evaluate(model: Any, readings: Iterable[tuple[Inputs, Tensor]]) -> Outcome:
    """Return what a model does with a split, in eval mode.

    Args:
        model: The model.
        readings: What it is given, with the classes (B,), in batches.

    Returns:
        Accuracy, mean cross-entropy and confusions.
    """
    model.eval()
    answered = [(model(*inputs), labels) for inputs, labels in readings]
    logits = torch.cat([found for found, _ in answered]).double()
    labels = torch.cat([labels for _, labels in answered])
    classes = logits.shape[1]
    confusion = (labels * classes + logits.argmax(dim=1)).bincount(minlength=classes**2).view(classes, classes)
    accuracy = confusion.diagonal().sum().item() / len(labels)
    return Outcome(accuracy, cross_entropy(logits, labels).item(), confusion)


def _nonzero(confusion: Tensor) -> list[list[int]]:
    """Return [true class, predicted class, samples] where there are samples."""
    cells = confusion.nonzero()
    return torch.cat([cells, confusion[cells[:, 0], cells[:, 1], None]], dim=1).tolist()
