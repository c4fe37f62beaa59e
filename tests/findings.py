"""Findings made up for tests: smooth positions, and tokens that counterbalance them more with depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mpvg.analysis.measures import correlation, effective_rank, last_norm_statistics, variance_share
from mpvg.analysis.results import (
    BlockFindings,
    CausalTest,
    Estimate,
    Findings,
    Intervention,
    LastNormFindings,
    TokenNorms,
)

Grid = tuple[int, int]
UNDEFINED = Estimate(None)


def make_map(grid: Grid, width: int, *, seed: int, size: float = 1.0) -> Tensor:
    """Smooth over the grid, a wave of its own in every dimension; a few dimensions are larger than others."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, grid[0]), torch.linspace(0, 1, grid[1]), indexing="ij")
    places = torch.stack([rows, columns], dim=-1).flatten(0, 1).double()
    waves = torch.randn(2, width, generator=draw).double() * 4
    phase = torch.rand(width, generator=draw).double() * 6.3
    gain = torch.randn(width, generator=draw).double().abs().square() + 0.2
    return size * gain * torch.sin(places @ waves + phase)


def make_block(
    block: int, grid: Grid, width: int, *, depth: int, delivered: bool = True, seed: int = 0, paper: float | None = None
) -> BlockFindings:
    position = make_map(grid, width, seed=block // 3 + 100 * seed, size=1.5)
    share = (block + 1) / depth
    tokens = make_map(grid, width, seed=1000 + block + seed) - share * position
    found = correlation(tokens, position)
    if not delivered or found is None:
        return BlockFindings(block, str(block), grid, tokens, None, UNDEFINED, UNDEFINED, UNDEFINED, UNDEFINED)
    return BlockFindings(
        block=block,
        name=str(block),
        grid=grid,
        tokens=tokens,
        position=position,
        correlation=Estimate(found, found - 0.04, found + 0.05),
        correlation_per_image=Estimate(0.6 * found, 0.6 * found - 0.02, 0.6 * found + 0.02),
        variance_share=Estimate(variance_share(tokens, position), 0.1, 0.4),
        effective_rank=Estimate(effective_rank(position)),
        paper=paper,
    )


def make_last(
    grid: Grid | None, width: int, *, position: Tensor | None = None, seed: int = 0, **paper: float
) -> LastNormFindings:
    before = make_map(grid or (1, 1), width, seed=77 + seed, size=3)
    beta = make_map((1, 1), width, seed=88 + seed, size=0.3)[0]
    gamma = 1 + 0.2 * make_map((1, 1), width, seed=99 + seed)[0]
    after = gamma * before / before.std() + beta
    constant = None if position is None else position.mean(dim=0)
    found = last_norm_statistics(before, after, beta=beta, position=position)
    return LastNormFindings(grid, before, after, position, gamma, beta, constant, found, paper)


def make_norms(grid: Grid, *, count: int = 3, seed: int = 0) -> TokenNorms:
    y, x = np.mgrid[0:64, 0:64] / 64
    images = np.stack([np.stack([x, y, (x + y + at / count) % 1], axis=-1) for at in range(count)])
    norms = np.stack([make_map(grid, 8, seed=at + seed).norm(dim=1).reshape(grid).numpy() for at in range(count)])
    names = tuple(f"class {at}" for at in range(count))
    return TokenNorms((255 * images).astype(np.uint8), names, 5 + norms, 10 + 2 * norms)


def make_causal(blocks: Sequence[BlockFindings], *, labels: bool = True, seed: int = 0) -> CausalTest:
    def intervention(block: int | None, name: str, change: str, loss: float) -> Intervention:
        difference = Estimate(-loss, -loss - 0.02, -loss + 0.02) if labels else UNDEFINED
        return Intervention(block, name, change, 0.7 - loss if labels else None, difference, 1 - loss)

    received = [block for block in blocks if block.position is not None]
    tried = [
        intervention(block.block, block.name, change, loss / (2 + at + 0.1 * seed))
        for at, block in enumerate(received)
        for change, loss in (("removed", 0.3), ("pos_0", 0.1), (f"d_{block.block + 1}", 0.05))
    ]
    tried += [intervention(None, "all", "removed", 0.6), intervention(None, "all", "pos_0", 0.2)]
    return CausalTest(200, 0.7 if labels else None, tuple(tried))


def make_findings(
    label: str = "mpvg",
    *,
    series: str | None = None,
    depth: int = 4,
    grid: Grid = (4, 5),
    width: int = 24,
    first: int | None = 1,
    added: bool = True,
    labels: bool = True,
    seed: int = 0,
    paper: dict[int, float] | None = None,
) -> Findings:
    """A plain transformer; `first` is the first block that receives a position, None for a model without."""
    blocks = tuple(
        make_block(
            block,
            grid,
            width,
            depth=depth,
            delivered=first is not None and block >= first,
            seed=seed,
            paper=(paper or {}).get(block),
        )
        for block in range(depth)
    )
    initial = make_map(grid, width, seed=5 + seed)
    printed = {"var_beta": 0.2387, "cosine": 0.2995} if paper else {}
    return Findings(
        name=f"runs/{label}.pt",
        label=label,
        series=series or label,
        model="mpvg_deit_tiny_patch16_224",
        scheme=label if first is not None else "gap",
        folded=False,
        parameters=5_700_000,
        images=256,
        initial=initial,
        initial_grid=grid,
        blocks=blocks,
        last=make_last(grid, width, position=initial if added else None, seed=seed, **printed),
        norms=make_norms(grid, seed=seed),
        causal=None if first is None else make_causal(blocks, labels=labels, seed=seed),
        notes=(),
    )


def make_swin() -> Findings:
    """Three stages with grids and widths of their own."""
    stages = [((24, 24), 24), ((12, 12), 48), ((6, 6), 96)]
    blocks = tuple(
        make_block(2 * stage + at, grid, width, depth=6)
        for stage, (grid, width) in enumerate(stages)
        for at in range(2)
    )
    return dataclasses.replace(
        make_findings("swin"), blocks=blocks, last=make_last((6, 6), 96), norms=make_norms((6, 6)), causal=None
    )


def make_ceit() -> Findings:
    """Its LCA reads a token of each layer, its last norm one token."""
    plain = make_findings("ceit")
    lca = dataclasses.replace(make_block(4, (1, 4), 24, depth=4), name="LCA", grid=None)
    blocks = (*plain.blocks, lca)
    return dataclasses.replace(
        plain,
        blocks=blocks,
        last=make_last(None, 24),
        norms=None,
        causal=make_causal(blocks, labels=False),
        notes=("Its Last LN reads one token: no map of norms.",),
    )


def with_undefined(findings: Findings) -> Findings:
    """The same model with a position of zeros in block 2."""
    block = findings.blocks[2]
    assert block.position is not None
    zeros = dataclasses.replace(
        block,
        position=torch.zeros_like(block.position),
        correlation=UNDEFINED,
        correlation_per_image=UNDEFINED,
        effective_rank=UNDEFINED,
        variance_share=Estimate(0.0),
    )
    return dataclasses.replace(findings, blocks=(*findings.blocks[:2], zeros, *findings.blocks[3:]))
