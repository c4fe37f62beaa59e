"""The causal test: what a model does when a block's position is taken away or replaced by another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mpvg.analysis.results import CausalTest, Estimate, Intervention
from mpvg.position import Positions
from mpvg.stats import CONFIDENCE

Batches = Iterable[tuple[tuple[Any, ...], Tensor | None]]


class Change(NamedTuple):
    """Other positions for one block, or for all (block None)."""

    block: int | None
    name: str
    change: str
    positions: Positions


@contextmanager
def delivering(model: Any, positions: Positions) -> Iterator[None]:
    """Let a layer-wise model, folded or not, deliver these positions within the block instead of its own."""
    model.positions = lambda grid_size=None: positions  # before the class's method; all forward passes ask for it
    try:
        yield
    finally:
        del model.positions


def changes(model: Any) -> list[Change]:
    """Return the changes to try: each receiver's position removed, replaced by pos_0, and by its neighbour's.

    The neighbour is the receiver before it, for the first the one after it, and always one of the same resolution. One
    more change removes all. In Swin pos_0 has the first stage's resolution and can replace nothing elsewhere.

    Args:
        model: A layer-wise model.
    """
    positions = model.positions()
    depth = len(model.all_blocks())
    receivers = [block for block, position in enumerate(positions.blocks) if position is not None]
    found = []
    for block in receivers:
        own = positions.blocks[block]
        name = str(block) if block < depth else "LCA"
        found.append(Change(block, name, "removed", _with(positions, {block: None})))
        initial = positions.initial
        if initial is not None and initial.shape == own.shape:
            found.append(Change(block, name, "pos_0", _with(positions, {block: initial})))
        alike = [other for other in receivers if other != block and positions.blocks[other].shape == own.shape]
        if alike:
            other = max((one for one in alike if one < block), default=alike[0])
            replaced = _with(positions, {block: positions.blocks[other]})
            found.append(Change(block, name, f"d_{other}", replaced))
    if receivers:
        found.append(Change(None, "all", "removed", _with(positions, dict.fromkeys(receivers))))
    return found


@torch.inference_mode()
def causal_test(model: Any, batches: Batches, *, report: Callable[[], None] = lambda: None) -> CausalTest:
    """Return what each of `changes` does to the model's answers.

    Args:
        model: A layer-wise model in eval mode.
        batches: The model's inputs, images (B, C, H, W) or sequences with their mask, and labels (B,); None for labels
            that the model does not know.
        report: Called after each pass over a batch; there are as many as changes, and one more.

    Returns:
        Accuracy as it is and after each change, over the same images or sequences.
    """
    tried = changes(model)
    right: list[list[Tensor]] = [[] for _ in range(len(tried) + 1)]
    same: list[list[Tensor]] = [[] for _ in tried]
    labelled = True
    for inputs, labels in batches:
        own = model(*inputs).argmax(dim=1)
        report()
        labelled = labelled and labels is not None
        target = own if labels is None else labels.to(own.device)
        right[0].append(own == target)
        for at, change in enumerate(tried):
            with delivering(model, change.positions):
                answers = model(*inputs).argmax(dim=1)
            report()
            right[at + 1].append(answers == target)
            same[at].append(answers == own)
    as_it_is, *changed = [torch.cat(flags).double() for flags in right]
    return CausalTest(
        images=len(as_it_is),
        accuracy=float(as_it_is.mean()) if labelled else None,
        interventions=tuple(
            Intervention(
                block=change.block,
                name=change.name,
                change=change.change,
                accuracy=float(now.mean()) if labelled else None,
                difference=_paired(now - as_it_is) if labelled else Estimate(None),
                same_answers=float(torch.cat(flags).double().mean()),
            )
            for change, now, flags in zip(tried, changed, same, strict=True)
        ),
    )


def _with(positions: Positions, replaced: dict[int, Tensor | None]) -> Positions:
    blocks = [replaced.get(block, position) for block, position in enumerate(positions.blocks)]
    return positions._replace(blocks=blocks)


def _paired(differences: Tensor) -> Estimate:
    """Return the mean of per-image differences and its 95 % normal interval."""
    mean = float(differences.mean())
    if len(differences) < 2:
        return Estimate(mean)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * float(differences.std()) / sqrt(len(differences))
    return Estimate(mean, mean - half, mean + half)
