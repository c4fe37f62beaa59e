"""What an analysis finds about one model; figures, tables and the report are made of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mpvg.analysis.measures import LastNormStatistics
from mpvg.data.splits import singular


class Estimate(NamedTuple):
    """A measure and its 95 % band over images; without bounds where there is no band, None where it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class BlockFindings:
    """Where one block's tokens meet its position.

    Args:
        block: Its number l, from 0.
        name: "0", "1", ...; "LCA" for CeiT's attention over layers.
        grid: Rows of the maps lie on this grid (H, W), of sequences (1, N); None where they are no image patches (LCA:
            layers).
        tokens: Mean over the images of LN_l(x_l), (N, D) in float64, patch tokens only; of sequences only the N rows
            that at least half of them reach.
        position: d_l (N, D) in float64, the same rows; None where nothing is delivered.
        correlation: Of `tokens` and `position`.
        correlation_per_image: The mean over the images of each one's own correlation.
        variance_share: Of the attention's input, what the position carries.
        effective_rank: Of the position.
        paper: The correlation that the paper prints for this block, where it draws this model.
    """

    block: int
    name: str
    grid: tuple[int, int] | None
    tokens: Tensor
    position: Tensor | None
    correlation: Estimate
    correlation_per_image: Estimate
    variance_share: Estimate
    effective_rank: Estimate
    paper: float | None = None


@dataclass(frozen=True)
class LastNormFindings:
    """What the Last LN does.

    Args:
        grid: Rows of the maps lie on this grid (H, W); None where the norm reads one token only (CeiT).
        before: Mean over the images of x_L, (N, D) in float64, patch tokens only.
        after: Mean over the images of LN(x_L), likewise, without any position.
        position: LN'(s) (N, D), what a scheme adds there; None for none.
        gamma: The norm's weight (D,); None without.
        beta: The norm's bias (D,); None without.
        constant: c (D,), the mean of `position` over the tokens, of sequences each one's own; None without one.
        statistics: Measures of all these.
        paper: What the paper prints for this model, by the names of `statistics`.
    """

    grid: tuple[int, int] | None
    before: Tensor
    after: Tensor
    position: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    constant: Tensor | None
    statistics: LastNormStatistics
    paper: dict[str, float]


@dataclass(frozen=True)
class TokenNorms:
    """L2 norms of the patch tokens of some images around the Last LN.

    Args:
        images: Pixels (K, H, W, C) in uint8.
        names: What each one shows, or "".
        before: Norms of x_L, (K, h, w).
        after: Norms of LN(x_L) [+ LN'(s)], (K, h, w).
    """

    images: npt.NDArray[np.uint8]
    names: tuple[str, ...]
    before: npt.NDArray[np.float64]
    after: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Intervention:
    """What happens when one block receives another position.

    Args:
        block: The block l; None for all blocks at once.
        name: Its name, "all" for all blocks.
        change: "removed", "pos_0" or "d_k" with k the other block's number, such as "d_3".
        accuracy: On the images; None where they have no label that the model knows.
        difference: Accuracy minus that of the model as it is, with its 95 % interval over images (paired).
        same_answers: Part of the images whose most probable class stays the same.
    """

    block: int | None
    name: str
    change: str
    accuracy: float | None
    difference: Estimate
    same_answers: float


@dataclass(frozen=True)
class CausalTest:
    """Accuracy as it is, and after each intervention; the same images throughout."""

    images: int
    accuracy: float | None
    interventions: tuple[Intervention, ...]


@dataclass(frozen=True)
class Findings:
    """Everything found about one model.

    Args:
        name: What the user called it: a checkpoint's path or a model's name.
        label: Short, unique among the models analysed; "mpvg" or "mpvg, seed 1".
        series: Models with the same text are one model trained with several seeds.
        model: timm's name.
        scheme: Canonical text; "" for a model without one (timm's own).
        folded: Whether its positions are stored tables.
        parameters: Their number.
        images: How many were analysed, of what `unit` says.
        initial: pos_0 (N, D), patch rows only; None without a table.
        initial_grid: The grid (H, W) of its rows.
        blocks: One for each block, CeiT's LCA behind them.
        last: What the Last LN does; None for a model without one.
        norms: Maps over chosen images; None where there are none (one token only).
        causal: The causal test; None where it was not asked for, or nothing is delivered.
        notes: What could not be drawn or computed and why, each a sentence.
        seed: Of the training; None where there was none.
        accuracy: On all images analysed; None where they have no label that the model knows.
        unit: What was analysed: "images", "sentences" or "series".
    """

    name: str
    label: str
    series: str
    model: str
    scheme: str
    folded: bool
    parameters: int
    images: int
    initial: Tensor | None
    initial_grid: tuple[int, int] | None
    blocks: tuple[BlockFindings, ...]
    last: LastNormFindings | None
    norms: TokenNorms | None
    causal: CausalTest | None
    notes: tuple[str, ...]
    seed: int | None = None
    accuracy: float | None = None
    unit: str = "images"

    @property
    def one(self) -> str:
        """What a single one of its samples is called."""
        return singular(self.unit)

    @property
    def delivers(self) -> bool:
        """Whether any block receives a position."""
        return any(block.position is not None for block in self.blocks)


def by_series(findings: Sequence[Findings]) -> dict[str, list[Findings]]:
    """Return the seeds of each model together, in order of appearance."""
    series: dict[str, list[Findings]] = {}
    for one in findings:
        series.setdefault(one.series, []).append(one)
    return series
