"""How detectors and segmenters are trained: the choices of mmdet's and mmseg's configurations, and the rates."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from math import cos, pi
from typing import Any

from mpvg.errors import UserError, nearest

_CURVES = ("steps", "poly", "cosine")
_NO_DECAY = ("names", "vectors")
_DROP = 0.1  # of the rate, at each milestone


@dataclass(frozen=True)
class DenseSchedule:
    """The curve of the learning rate, and how it begins.

    Args:
        curve: "steps" for a tenth from each milestone on; "poly" for a line to zero over all steps; "cosine" for half a
            wave to zero.
        milestones: Epochs, from 0, at which the rate of "steps" drops.
        warmup_steps: Steps at the beginning whose rates grow along a line to those of the curve.
        warmup_factor: Part of the curve's rate at the first of them.
    """

    curve: str = "steps"
    milestones: tuple[int, ...] = (27, 33)
    warmup_steps: int = 500
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        if self.curve not in _CURVES:
            guess = nearest(self.curve, _CURVES)
            raise UserError(f"curve {self.curve!r} is unknown{guess}: name one of {', '.join(_CURVES)}.")
        if any(epoch < 1 for epoch in self.milestones):
            raise UserError(f"milestones {list(self.milestones)}: name epochs, 1 or more.")
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps {self.warmup_steps}: name a number from 0.")
        if not 0 <= self.warmup_factor <= 1:
            raise UserError(f"warmup_factor {self.warmup_factor}: name a part from 0 to 1.")

    def factor(self, step: int, *, steps: int, steps_an_epoch: int) -> float:
        """Return a step's rate, as a part of the highest.

        Args:
            step: From 0.
            steps: Of the training.
            steps_an_epoch: Of the optimiser.

        Source:
            mmcv's hooks StepLrUpdaterHook and PolyLrUpdaterHook (power 1, least rate 0) with a linear warm-up.
        """
        if self.curve == "steps":
            of_curve = _DROP ** sum(step >= epoch * steps_an_epoch for epoch in self.milestones)
        elif self.curve == "poly":
            of_curve = max(1 - step / steps, 0.0)
        else:
            of_curve = (1 + cos(pi * min(step / steps, 1.0))) / 2
        if step >= self.warmup_steps:
            return of_curve
        return of_curve * (self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps)


@dataclass(frozen=True)
class DenseRecipe:
    """The choices of a training for a dense task; the optimiser is AdamW.

    Args:
        lr: Highest learning rate, whatever the batch.
        weight_decay: Of what is not left out by `no_decay`.
        layer_decay: Each block's rate, as a part of the next one's; adapter and heads have the full one. None for one
            rate.
        no_decay: What has no weight decay: "names" for parameters with level_embed, pos_embed, norm or bias in their
            names, as in detection; "vectors" for those of one dimension, as in segmentation, where the position table
            decays.
        schedule: Of the learning rate.
    """

    lr: float = 1e-4
    weight_decay: float = 0.05
    layer_decay: float | None = None
    no_decay: str = "names"
    schedule: DenseSchedule = field(default_factory=DenseSchedule)

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise UserError(f"lr {self.lr}: name a number above 0.")
        if not self.weight_decay >= 0:
            raise UserError(f"weight_decay {self.weight_decay}: name a number from 0.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay {self.layer_decay}: name a number above 0 and up to 1.")
        if self.no_decay not in _NO_DECAY:
            guess = nearest(self.no_decay, _NO_DECAY)
            raise UserError(f"no_decay {self.no_decay!r} is unknown{guess}: name one of {', '.join(_NO_DECAY)}.")

    def as_dict(self) -> dict[str, Any]:
        """Return all choices in one level of JSON-able values."""
        choices = asdict(self)
        found: dict[str, Any] = json.loads(json.dumps({**choices.pop("schedule"), **choices}))
        return found


OF_DETECTION = DenseRecipe()
OF_SEGMENTATION = DenseRecipe(
    lr=1.2e-4,
    weight_decay=0.01,
    layer_decay=0.95,
    no_decay="vectors",
    schedule=DenseSchedule(curve="poly", warmup_steps=1500, warmup_factor=1e-6),
)
