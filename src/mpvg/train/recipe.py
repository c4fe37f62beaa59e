"""How a model is trained: loss, optimiser, schedule. `mpvg compare` and `mpvg fit` have no other."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy

from mpvg.errors import NonFiniteLossError, UserError, nearest
from mpvg.train.freezing import TRAINS, set_training_mode

_RATE_TIMES_WIDTH = 0.192


@dataclass(frozen=True)
class Recipe:
    """The choices of a training.

    Args:
        lr: Peak learning rate; None for `default_lr` of the model.
        opt: Optimiser, by timm's name.
        weight_decay: For matrices only; norms, biases and position tables have none.
        warmup: Part of the steps with a linear warm-up; cosine to zero follows.
        label_smoothing: Of the cross-entropy.
        shift: Largest random shift of a training image, as a part of its side, in whole pixels (none below 10).
        layer_decay: Each block's learning rate, as a part of the next one's; None for one rate.
        trains: "all"; "positions" for the classifier and all of positions; "head" for the classifier alone. The rest is
            frozen, and runs without dropout and drop path.
    """

    lr: float | None = None
    opt: str = "adamw"
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    shift: float = 0.1
    layer_decay: float | None = None
    trains: str = "all"

    def __post_init__(self) -> None:
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise UserError(f"lr {self.lr}: name a number above 0.")
        if not self.weight_decay >= 0:
            raise UserError(f"weight_decay {self.weight_decay}: name a number from 0.")
        for name in ("warmup", "label_smoothing", "shift"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: name a part from 0 to below 1.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay {self.layer_decay}: name a number above 0 and up to 1.")
        if self.trains not in TRAINS:
            raise UserError(
                f"trains {self.trains!r} is unknown{nearest(self.trains, TRAINS)}: name one of {', '.join(TRAINS)}."
            )
        known = list_optimizers()
        if self.opt not in known:
            raise UserError(f"opt {self.opt!r} is unknown{nearest(self.opt, known)}: name one of timm's optimisers.")


def default_lr(model: str) -> float:
    """Return a peak learning rate: inverse to the model's width, 0.004 at 48 channels.

    Args:
        model: Registered name.

    Returns:
        The rate, for AdamW and batches of about 64 images.
    """
    return _RATE_TIMES_WIDTH / timm.create_model(model, device="meta").num_features


def training_step(model: Any, images: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Return the loss that a training step descends.

    Args:
        model: In the mode of training.
        images: Normalised images (B, C, H, W).
        labels: Classes (B,).
        recipe: For its label smoothing.

    Returns:
        The mean loss of the batch.
    """
    return cross_entropy(model(images), labels, label_smoothing=recipe.label_smoothing)


def take_step(model: Any, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, recipe: Recipe) -> float:
    """Take one step down the loss; Lightning does the same around `training_step`.

    Args:
        model: The model, put into the mode of training.
        optimizer: Of its parameters that are trained.
        images: Normalised images (B, C, H, W).
        labels: Classes (B,).
        recipe: For the loss and what is trained.

    Returns:
        The loss before the step.
    """
    set_training_mode(model, recipe.trains)
    loss = training_step(model, images, labels, recipe)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


def build_optimizer(model: Any, recipe: Recipe, *, fused: bool = True) -> torch.optim.Optimizer:
    """Create the optimiser, with the decays that timm's rules and the model's own give each parameter.

    Args:
        model: The model, of which the frozen parameters are left out.
        recipe: For optimiser, learning rate, and the decay of weights and of rates with depth.
        fused: Take PyTorch's fused kernels where the optimiser has them.

    Returns:
        The optimiser.
    """
    options = {"fused": True} if fused and recipe.opt in ("adam", "adamw") else {}
    return create_optimizer_v2(
        model,
        opt=recipe.opt,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        **options,
    )


def build_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, *, steps: int) -> CosineLRScheduler:
    """Create the schedule and set the rate of the first step; after step t (from 1) call `step_update(t + 1)`.

    Args:
        optimizer: Whose rates it sets.
        recipe: For its warm-up.
        steps: Steps in all; the cosine ends at zero with the last.

    Returns:
        timm's schedule, counting steps.
    """
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=max(steps, 2),  # of one step alone timm warns, and the rate would be zero
        warmup_t=round(recipe.warmup * steps),
        warmup_lr_init=0.0,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    schedule.step_update(1)
    return schedule


def check_loss(loss: float, *, what: str, epoch: int, step: int, lr: float) -> None:
    """Raise where a loss is no number any more.

    Args:
        loss: The loss of a step.
        what: What is trained.
        epoch: From 1.
        step: Steps taken, this one included.
        lr: Peak learning rate.

    Raises:
        NonFiniteLossError: The loss is NaN or infinite.
    """
    if not isfinite(loss):
        where = f"epoch {epoch}, step {step}"
        raise NonFiniteLossError(f"the loss of {what} is {loss} at {where}: lower the learning rate (it is {lr:g}).")
