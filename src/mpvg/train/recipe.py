"""How a model is trained: all that `mpvg compare` and `mpvg fit` share. The files of recipes/ set it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import timm
from timm.optim import list_optimizers

from mpvg.data.augmentation import Augmentation
from mpvg.errors import UserError, nearest
from mpvg.train.freezing import TRAINS

_RATE_TIMES_WIDTH = 0.192
_COUNTED_BY = ("step", "epoch")


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up and a cosine, read at every step or once an epoch.

    Args:
        warmup_epochs: Epochs of the warm-up; None for a tenth of the training.
        warmup_lr: Rate that it starts from.
        min_lr: Rate that the cosine ends at, for every group of parameters.
        cooldown_epochs: Last epochs, at `min_lr` throughout; the cosine ends before them.
        warmup_prefix: Begin the cosine after the warm-up; otherwise it runs below it from the start, so that the peak
            is not quite reached.
        by: What is counted, "step" or "epoch".
        lead: Steps or epochs that the count is ahead; -1 is a scheduler that lags behind, as DeiT's does.
        scaled: Whether `warmup_lr` and `min_lr` scale with the batch where the peak does.
    """

    warmup_epochs: float | None = None
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    cooldown_epochs: int = 0
    warmup_prefix: bool = False
    by: str = "step"
    lead: int = 1
    scaled: bool = False

    def __post_init__(self) -> None:
        for name in ("warmup_epochs", "warmup_lr", "min_lr", "cooldown_epochs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"{name} {value}: name a number from 0.")
        if self.by not in _COUNTED_BY:
            raise UserError(f"by {self.by!r} is unknown{nearest(self.by, _COUNTED_BY)}: name step or epoch.")

    def time(self, step: int, steps_an_epoch: int) -> int:
        """Return where on its curve the schedule is during a step, counted from 0."""
        return max((step if self.by == "step" else step // steps_an_epoch) + self.lead, 0)


@dataclass(frozen=True)
class Recipe:
    """The choices of a training.

    Args:
        lr: Peak learning rate; None for `default_lr` of the model.
        lr_batch: Images a step that `lr` is for: it grows in proportion to the batch. None leaves it as it is.
        opt: Optimiser, by timm's name ("momentum" is SGD with momentum, "sgd" has Nesterov's).
        weight_decay: For matrices only; norms, biases and what the model names (mostly position tables) have none.
        decay_all: Decay norms, biases and tables as well.
        label_smoothing: Of the cross-entropy.
        layer_decay: Each block's learning rate, as a part of the next one's; None for one rate.
        backbone_lr: Rate of all but the classifier, as a part of `lr`; None for one rate.
        last_norm_bias_lr: Rate of the Last LN's bias, times that of what surrounds it. 2 under `pvg` is a control of
            `mpvg`, whose offset after the Last LN is the sum of two biases that always move alike.
        stock_groups: Leave out of the training what T2T-ViT's fine-tuning script does: everything but the patch
            embedding, the blocks and the classifier, so the class token, the Last LN and its position norm.
        trains: "all"; "positions" for the classifier and all of positions; "head" for the classifier alone. The rest is
            frozen, and runs without dropout and drop path.
        ema_decay: Decay of a moving average of the weights, kept beside them; None for none.
        ema_evaluate: Validate, test and predict with that average, not with the weights themselves.
        schedule: Of the learning rate.
        augmentation: Of the training images.
    """

    lr: float | None = None
    lr_batch: int | None = None
    opt: str = "adamw"
    weight_decay: float = 0.05
    decay_all: bool = False
    label_smoothing: float = 0.1
    layer_decay: float | None = None
    backbone_lr: float | None = None
    last_norm_bias_lr: float = 1.0
    stock_groups: bool = False
    trains: str = "all"
    ema_decay: float | None = None
    ema_evaluate: bool = False
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("lr", "lr_batch", "backbone_lr", "last_norm_bias_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name} {value}: name a number above 0.")
        if not self.weight_decay >= 0:
            raise UserError(f"weight_decay {self.weight_decay}: name a number from 0.")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing {self.label_smoothing}: name a part from 0 to below 1.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay {self.layer_decay}: name a number above 0 and up to 1.")
        if self.layer_decay is not None and self.backbone_lr is not None:
            raise UserError(f"backbone_lr {self.backbone_lr} with layer_decay {self.layer_decay}: leave one out.")
        if self.stock_groups and self.backbone_lr is None:
            raise UserError("stock_groups true needs backbone_lr: these are the groups of a fine-tuning.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay {self.ema_decay}: name a number between 0 and 1, 0.99996 say.")
        if self.ema_evaluate and self.ema_decay is None:
            raise UserError("ema_evaluate true without an average to evaluate: name its ema_decay, 0.99996 say.")
        if self.trains not in TRAINS:
            raise UserError(
                f"trains {self.trains!r} is unknown{nearest(self.trains, TRAINS)}: name one of {', '.join(TRAINS)}."
            )
        known = list_optimizers()
        if self.opt not in known:
            raise UserError(f"opt {self.opt!r} is unknown{nearest(self.opt, known)}: name one of timm's optimisers.")

    def for_batches_of(self, images: int, *, model: str) -> Recipe:
        """Return the recipe with the rates that it means for batches of so many images.

        Args:
            images: Images a step of the optimiser, over all devices.
            model: Name, for its default rate.
        """
        lr = default_lr(model) if self.lr is None else self.lr
        factor = 1.0 if self.lr_batch is None else images / self.lr_batch
        of_schedule = factor if self.schedule.scaled else 1.0
        schedule = replace(
            self.schedule, warmup_lr=self.schedule.warmup_lr * of_schedule, min_lr=self.schedule.min_lr * of_schedule
        )
        return replace(self, lr=lr * factor, lr_batch=None, schedule=schedule)

    def as_dict(self) -> dict[str, Any]:
        """Return all choices in one level of JSON-able values."""
        choices = asdict(self)
        flat = {**choices.pop("schedule"), **choices.pop("augmentation"), **choices}
        found: dict[str, Any] = json.loads(json.dumps(flat))
        return found


def default_lr(model: str) -> float:
    """Return a peak learning rate: inverse to the model's width, 0.004 at 48 channels.

    Args:
        model: Registered name.

    Returns:
        The rate, for AdamW and batches of about 64 images.
    """
    return _RATE_TIMES_WIDTH / timm.create_model(model, device="meta").num_features
