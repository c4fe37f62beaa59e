"""Which random operations an image gets, and with what arguments: drawn as timm's RandAugment draws them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

from mpvg.data.augment.kinds import ARGUMENTS, Kind
from mpvg.data.augment.streams import normal_from
from mpvg.errors import UserError


@dataclass(frozen=True)
class RandAugment:
    """What timm makes of a string such as rand-m9-mstd0.5-inc1.

    Args:
        names: The operations that are drawn from, by timm's names.
        weights: How often each is drawn, without replacement; None for equally often, with replacement.
        layers: Operations an image.
        probability: That a drawn operation is done.
        magnitude: Its mean.
        deviation: Its deviation; infinite for a uniform draw up to `magnitude`.
        highest: The largest magnitude.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] | None
    layers: int
    probability: float
    magnitude: float
    deviation: float
    highest: float

    @classmethod
    @lru_cache
    def parsed(cls, text: str) -> RandAugment:
        """Return what timm reads in a string.

        Raises:
            UserError: It asks for operations that are not done here, or for more than there are.
        """
        found = rand_augment_transform(text, {})
        names = tuple(op.name for op in found.ops)
        if unknown := sorted(set(names) - set(ARGUMENTS)):
            raise UserError(f"rand_augment {text!r} asks for {', '.join(unknown)}, which is not done on a device.")
        weights = None if found.choice_weights is None else tuple(float(weight) for weight in found.choice_weights)
        if weights is not None and found.num_layers > len(names):
            raise UserError(f"rand_augment {text!r} asks for {found.num_layers} of {len(names)} operations: lower n.")
        op = found.ops[0]
        highest = float(op.magnitude_max or 10)
        return cls(names, weights, found.num_layers, op.prob, op.magnitude, float(op.magnitude_std), highest)


class Operations(NamedTuple):
    """The operations of each image, one after the other.

    Args:
        kind: Which, as `Kind` numbers them, (B, n) in int64; `Kind.NOTHING` where none is done.
        argument: Its argument, (B, n) in float32.
        bicubic: Whether it interpolates bicubic, else bilinear, (B, n) in bool.
    """

    kind: Tensor
    argument: Tensor
    bicubic: Tensor


def numbers_for_operations(text: str) -> int:
    """Return how many random numbers an image's operations take."""
    plan = RandAugment.parsed(text)
    return 5 * plan.layers + (plan.layers if plan.weights is None else len(plan.names))


def draw_operations(text: str, numbers: Tensor, interpolation: str) -> Operations:
    """Return the operations that images get.

    Args:
        text: As timm writes it, such as rand-m9-mstd0.5-inc1.
        numbers: From 0 to below 1, (B, `numbers_for_operations`).
        interpolation: bilinear, bicubic or random.

    Returns:
        For each image as many operations as timm has layers.
    """
    plan = RandAugment.parsed(text)
    done, negated, bicubic, *level = numbers[:, : 5 * plan.layers].chunk(5, dim=1)
    chance = numbers[:, 5 * plan.layers :]
    if plan.weights is None:
        chosen = (chance * len(plan.names)).long()
    else:  # those that wait shortest, where waiting times are exponential: drawn without replacement
        chosen = (-(1 - chance).log() / _tensor(plan.weights, numbers.device)).argsort(dim=1)[:, : plan.layers]
    if plan.deviation == float("inf"):
        magnitude = level[0] * plan.magnitude
    else:
        magnitude = plan.magnitude + plan.deviation * normal_from(*level)
    kind, argument = arguments(plan.names, chosen, magnitude.clamp(0, plan.highest), negated > 0.5)
    kind = torch.where(done <= plan.probability, kind, Kind.NOTHING)
    even = interpolation == "random"
    cubic = bicubic >= 0.5 if even else torch.full_like(kind, interpolation == "bicubic", dtype=torch.bool)
    return Operations(kind, argument, cubic)


def arguments(names: tuple[str, ...], chosen: Tensor, magnitude: Tensor, negated: Tensor) -> tuple[Tensor, Tensor]:
    """Return what operations do at a magnitude.

    Args:
        names: Operations by timm's names.
        chosen: Which of them, in int64.
        magnitude: From 0, usually up to 10, of the same shape.
        negated: Whether a value that is negated at random is, in bool, of the same shape.

    Returns:
        Kinds in int64 and arguments in float32, of the same shape.
    """
    rows = _rows(names, chosen.device)
    kind, scale, whole, most, negates, base, sign, least = rows[chosen].unbind(-1)
    value = magnitude / 10 * scale
    value = torch.where(whole > 0, value.floor(), value).minimum(most)
    value = torch.where((negates > 0) & negated, -value, value)
    return kind.long(), (base + sign * value).maximum(least)


@lru_cache
def _rows(names: tuple[str, ...], device: torch.device) -> Tensor:
    return torch.tensor([[float(part) for part in ARGUMENTS[name]] for name in names], device=device)


@lru_cache
def _tensor(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers on a device, remembered: to send them anew would make the processor wait."""
    return torch.tensor(numbers, device=device)
