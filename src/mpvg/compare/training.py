"""One run: a model under one scheme and one seed, trained, watched on the validation split, tested once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy

from mpvg.analysis.record import correlation_by_block
from mpvg.compare.settings import Settings
from mpvg.data.batches import Pixels, epoch_batches
from mpvg.data.sources import ImageData, split_validation

_EVAL_BATCH = 512

Progress = Callable[[float, float], None]  # told the part of the steps that is done, and the training loss


class RunError(RuntimeError):
    """A run failed; runs that finished before are kept."""


class NonFiniteLossError(RunError):
    """The loss of a run is no number any more."""


@dataclass(frozen=True)
class Schedule:
    """How many steps a run takes, and of how many images."""

    steps: int
    batch_size: int

    def curve_steps(self, val_images: int) -> set[int]:
        """Return when to read the validation accuracy: 5 to 40 times, fewer where that is long beside training."""
        trained_per_reading = self.steps * self.batch_size / val_images
        points = 5 * min(max(int(trained_per_reading / 10), 1), 8)  # multiples of 5, so that one is at four fifths
        return {max(round(self.steps * point / points), 1) for point in range(1, points + 1)}

    @classmethod
    def of(cls, settings: Settings, train_images: int) -> Schedule:
        batch_size = min(settings.batch_size, train_images)
        return cls(train_images // batch_size * settings.epochs, batch_size)


def build_model(settings: Settings, scheme: str, data: ImageData, **placement: Any) -> Any:
    """Create the model for the data's size, channels and classes."""
    return timm.create_model(
        settings.model,
        scheme=scheme,
        img_size=data.image_size,
        in_chans=data.channels,
        num_classes=len(data.classes),
        **placement,
    )


def train_run(settings: Settings, scheme: str, seed: int, data: ImageData, report: Progress) -> dict[str, Any]:
    """Train and test one scheme with one seed.

    The split, the order of batches, the shifts and the initial value of every parameter that schemes share depend on
    the seed alone, so that differences between schemes of one seed are paired.

    Args:
        settings: The configuration.
        scheme: Name or text of the scheme.
        seed: The run's seed.
        data: The images.
        report: Called about a hundred times.

    Returns:
        A JSON-able record: accuracy and loss on the test split, the learning curve, correlations by depth, counts.

    Raises:
        NonFiniteLossError: The training loss is NaN or infinite.
    """
    started = time.perf_counter()
    train, val = split_validation(data, fraction=settings.val_fraction, seed=seed)
    pixels = Pixels(train)
    images, labels = pixels(train)
    val_images, val_labels = pixels(val)
    torch.manual_seed(seed)
    model = build_model(settings, scheme, data)
    schedule = Schedule.of(settings, len(train))
    optimizer = create_optimizer_v2(model, opt="adamw", lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    warmup = round(settings.warmup * schedule.steps)
    lr = CosineLRScheduler(
        optimizer, t_initial=schedule.steps, warmup_t=warmup, warmup_lr_init=0.0, warmup_prefix=False, t_in_epochs=False
    )
    curve: dict[str, list[float]] = {"step": [], "train_loss": [], "val_accuracy": []}
    points = schedule.curve_steps(len(val))
    losses: list[float] = []
    step = 0
    for epoch in range(settings.epochs):
        for batch, target in epoch_batches(
            images,
            labels,
            batch_size=schedule.batch_size,
            shift=int(settings.shift * min(data.image_size)),
            seed=seed,
            epoch=epoch,
        ):
            lr.step_update(step + 1)
            loss = training_step(model, optimizer, batch, target, label_smoothing=settings.label_smoothing)
            losses.append(loss)
            step += 1
            if not isfinite(loss):
                raise NonFiniteLossError(
                    f"the loss of {scheme}, seed {seed}, is {loss} at epoch {epoch}, step {step}: lower --lr "
                    f"(it is {settings.lr:g})."
                )
            if step in points:
                accuracy, _ = evaluate(model, val_images, val_labels)
                curve["step"].append(step)
                curve["train_loss"].append(sum(losses) / len(losses))
                curve["val_accuracy"].append(accuracy)
                losses.clear()
            if step % max(schedule.steps // 100, 1) == 0:
                report(step / schedule.steps, loss)
    test_images, test_labels = pixels(data.test)
    accuracy, test_loss = evaluate(model, test_images, test_labels)
    spread = torch.linspace(0, len(test_images) - 1, min(len(test_images), _EVAL_BATCH)).long()  # files come by class
    correlations = correlation_by_block(model.eval(), test_images[spread])
    return {
        "scheme": scheme,
        "seed": seed,
        "accuracy": accuracy,
        "loss": test_loss,
        "first_block": model.plan.blocks[0] is not None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": schedule.steps,
        "train_images": len(train),
        "val_images": len(val),
        "seconds": time.perf_counter() - started,
        "curve": curve,
        "correlation": {"block": list(correlations), "value": list(correlations.values())} if correlations else None,
    }


def training_step(
    model: Any, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, *, label_smoothing: float
) -> float:
    """Take one optimiser step and return the loss before it."""
    model.train()
    loss = cross_entropy(model(images), labels, label_smoothing=label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def evaluate(model: Any, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy in eval mode."""
    model.eval()
    logits = torch.cat([model(batch) for batch in images.split(_EVAL_BATCH)])
    accuracy = (logits.argmax(dim=1) == labels).double().mean().item()
    return accuracy, cross_entropy(logits.double(), labels).item()
