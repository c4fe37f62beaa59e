"""The work that a scheme itself asks for, by formula.

The position path never sees an image, so its norms are applied once a forward pass, whatever the batch:

    LN' of (N, D)          7 N D operations        once a forward pass
    LN(x) + d              N D additions           once an image
    x_0 = tokens + pos_0   N D additions           once an image
    LN(x_L) + LN'(s)       N D additions           once an image; of sequences whose tokens are averaged, the mean of
                                                   LN'(s) once a forward pass, and D additions for each

For backward a LN' keeps its mean and scale, 2 N numbers, and what it reads, N D numbers, unless that is pos_0 itself,
which is a parameter and there anyway. Adding keeps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from mpvg.cost.formulas import merge
from mpvg.fold import Folded
from mpvg.models.mpvg_ceit import LayerwiseCeiT
from mpvg.models.mpvg_sequence import LayerwiseSequence
from mpvg.models.mpvg_swin import LayerwiseSwin
from mpvg.scheme import Plan

NORM_OPERATIONS: Final = (
    7  # an element: sum, subtract, square, sum, scale, gain, bias; what is done once a row is left out
)
INITIAL: Final = object()  # pos_0; every table that is computed from it is an object of its own


class Stage(NamedTuple):
    """Blocks of one resolution: rows N and width D of the table, tokens of an image, and how many blocks."""

    rows: int
    tokens: int
    width: int
    depth: int


@dataclass
class OwnWork:
    """What a scheme asks for beside the architecture.

    Args:
        norms: Position norms, applied once a forward pass each; Swin's merging of positions brings norms of its own.
        norm_elements: Numbers that go through them.
        merging: Matrix-product FLOPs of Swin's merging of positions, once a forward pass.
        averaged: Additions once a forward pass: CeiT and models of sequences, here without padding, average the Last
            LN's position over the tokens.
        added: Additions an image.
        kept: Numbers kept for backward, once a step.
    """

    norms: int = 0
    norm_elements: int = 0
    merging: int = 0
    averaged: int = 0
    added: int = 0
    kept: int = 0
    _read: set[object] = field(default_factory=set, repr=False)

    @property
    def norm_flops(self) -> int:
        return NORM_OPERATIONS * self.norm_elements

    def norm(self, rows: int, width: int, source: object) -> None:
        """Count a norm of (rows, width) that reads `source`: kept once however often it is read, unless INITIAL."""
        self.norms += 1
        self.norm_elements += rows * width
        self.kept += 2 * rows
        if source is not INITIAL and source not in self._read:
            self._read.add(source)
            self.kept += rows * width

    def merge(self, stage: Stage) -> object:
        """Count the merging of a table of this stage into the next, and return the name of what comes out."""
        self.norm(stage.rows // 4, 4 * stage.width, object())  # neighbours side by side, a copy
        self.kept += stage.rows * stage.width  # the linear layer's input
        self.merging += merge(stage.rows, stage.width)
        return object()


def own_work(model: Any) -> OwnWork:
    """Count what a model's scheme asks for.

    Args:
        model: A model of this library. Of a folded one only additions are left.

    Returns:
        The work by formula.
    """
    stages, plan, work = _stages(model), model.plan, OwnWork()
    if not isinstance(model, Folded):
        _count_path(work, stages, plan)
    received = iter(plan.blocks)
    for stage in stages:
        work.added += stage.tokens * stage.width * sum(next(received) is not None for _ in range(stage.depth))
    first, last = stages[0], stages[-1]
    is_ceit = isinstance(model, LayerwiseCeiT)
    averages = isinstance(model, LayerwiseSequence) and model.global_pool == "avg"
    if plan.join_input:
        work.added += first.tokens * first.width
    if _adds_at_last_norm(model):
        work.added += (1 if is_ceit or averages else last.tokens) * last.width
        work.averaged += last.tokens * last.width if averages else 0
    if is_ceit:
        _count_layer_attention(work, model)
    return work


def _adds_at_last_norm(model: Any) -> bool:
    if isinstance(model, Folded):  # an averaged term has gone into the Last LN's bias
        return model.last_table is not None and model.pooled_norm is None
    return model.plan.last is not None


def _count_path(work: OwnWork, stages: Sequence[Stage], plan: Plan) -> None:
    """Follow the positions from the table to every norm."""
    initial = previous = INITIAL
    delivered: list[object] = []
    for index, stage in enumerate(stages):
        to_come = plan.blocks[len(delivered) :]
        if index and "initial" in to_come:
            initial = work.merge(stages[index - 1])
        if index and "previous" in to_come:
            previous = work.merge(stages[index - 1])
        for source in to_come[: stage.depth]:
            if source is not None:
                work.norm(stage.rows, stage.width, initial if source == "initial" else previous)
                previous = object()
            delivered.append(previous)
    if plan.last is not None:
        read, start = INITIAL if plan.last == 0 else delivered[plan.last], 0
        for index, stage in enumerate(stages):
            if start > plan.last:
                read = work.merge(stages[index - 1])
            start += stage.depth
        work.norm(stages[-1].rows, stages[-1].width, read)


def _count_layer_attention(work: OwnWork, model: Any) -> None:
    """Count CeiT's LCA, whose tokens are the layers and whose table is a parameter of its own."""
    layers, width, plan = len(model.blocks), model.embed_dim, model.plan
    is_delivered = any(plan.blocks)
    work.added += layers * width * (plan.join_input + is_delivered)
    if is_delivered and not isinstance(model, Folded):
        work.norm(layers, width, INITIAL)
    has_table = model.last_table is not None if isinstance(model, Folded) else plan.last is not None
    if has_table and not model.has_class_token:  # a folded model averages its stored table
        work.averaged += _stages(model)[0].rows * width


def _stages(model: Any) -> list[Stage]:
    height, wide = model.patch_embed.grid_size
    patches = height * wide
    if not isinstance(model, LayerwiseSwin):
        rows = patches + int(model.has_class_row)
        return [Stage(rows, patches + model.num_prefix_tokens, model.embed_dim, len(model.blocks))]
    return [
        Stage(patches >> 2 * index, patches >> 2 * index, model.layers[0].dim << index, len(stage.blocks))
        for index, stage in enumerate(model.layers)
    ]
