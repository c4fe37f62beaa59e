"""What tests of remembered positions share: counting the norms that run, and comparing positions."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mpvg.position import Positions


def position_norms(model: Any) -> list[Any]:
    return [module for name, module in model.named_modules() if name.endswith("norm_pos")]


class Calls:
    """How often each position norm has run since this was last asked: the same for all."""

    def __init__(self, model: Any) -> None:
        self.norms = position_norms(model)
        self.counts = [0] * len(self.norms)
        for index, norm in enumerate(self.norms):
            norm.register_forward_hook(partial(self._count, index))

    def _count(self, index: int, *args: Any) -> None:
        self.counts[index] += 1

    def __call__(self) -> int:
        (count,) = set(self.counts)
        self.counts = [0] * len(self.norms)
        return count


def fresh(model: Any, x: Tensor) -> Tensor:
    """What a model that remembers nothing puts out."""
    with torch.no_grad():
        return copy.deepcopy(model)(x)


def tables(positions: Positions) -> list[Tensor | None]:
    return [positions.initial, *positions.blocks, positions.last]


def same(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.shape == two.shape and torch.equal(one, two)


def assert_same(found: Positions, expected: Positions) -> None:
    assert all(same(one, two) for one, two in zip(tables(found), tables(expected), strict=True))


def copied(model: Any) -> None:
    position_norms(model)[-1].weight.copy_(torch.randn(position_norms(model)[-1].weight.shape))
