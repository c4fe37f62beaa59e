"""Heat maps of tokens by dimensions, and the paper's figure 2."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mpvg.analysis.figures.numbers import number
from mpvg.analysis.figures.series import LCA
from mpvg.analysis.figures.tiles import Array, Band, Scale, Tile, TileFigure, diverging, heat, message
from mpvg.analysis.results import BlockFindings, Findings

__all__ = ["evenly", "shape_text", "shown_map", "tokens_and_positions"]

_BLOCKS = 6
_ROWS, _COLUMNS = 256, 256  # a map of more is reduced: a tile has about as many pixels on a screen
_NOTHING = "nothing is\ndelivered"


def tokens_and_positions(findings: Sequence[Findings]) -> TileFigure:
    """Lay out the paper's figure 2: normalised tokens above the positions delivered to the same blocks, and x_L.

    Args:
        findings: The models, a band each.

    Returns:
        The figure. The limits of its one scale hold the block panels; x_L may exceed them.
    """
    chosen = [_chosen_blocks(one, findings) for one in findings]
    arrays = [shown_map(block.tokens, block.grid) for blocks in chosen for block in blocks]
    arrays += [shown_map(b.position, b.grid) for blocks in chosen for b in blocks if b.position is not None]
    scale = diverging("value of tokens and positions", arrays)
    bands = [_figure2_band(one, blocks, scale) for one, blocks in zip(findings, chosen, strict=True)]
    return TileFigure(bands, [scale], height=88, widest=150)


def evenly(count: int, most: int) -> list[int]:
    """Choose at most so many of 0 .. count - 1, evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(at * (count - 1) / (most - 1)) for at in range(most)]


def shown_map(values: Tensor, grid: tuple[int, int] | None) -> Array:
    """Reduce a map to what a tile can show.

    Args:
        values: Map (N, D).
        grid: The grid (H, W) of its rows.

    Returns:
        At most about 256 rows, averaged over square neighbourhoods of the grid, or over neighbours where it is a single
        row, and at most 256 columns, evenly chosen.
    """
    values = values.detach().double()
    dimensions = values.shape[1]
    values = values[:, :: math.ceil(dimensions / _COLUMNS)]
    if grid is not None and len(values) > _ROWS:
        times = len(values) / _ROWS
        factor = math.ceil(times if grid[0] == 1 else math.sqrt(times))
        size = (math.ceil(grid[0] / factor), math.ceil(grid[1] / factor))
        values = adaptive_avg_pool2d(values.T.unflatten(1, grid), size).flatten(1).T
    return values.numpy()


def shape_text(values: Tensor, rows: str = "tokens") -> str:
    """Write how many tokens, or other `rows`, and dimensions a map (N, D) has."""
    tokens, dimensions = values.shape
    return f"{tokens} {'token' if tokens == 1 else rows} × {dimensions}"


def _chosen_blocks(one: Findings, findings: Sequence[Findings]) -> list[BlockFindings]:
    """Blocks spread over those that receive a position; a model without takes those of one with as many blocks."""
    blocks = [block for block in one.blocks if block.name != LCA]
    like = next((other for other in (one, *findings) if other.delivers and len(other.blocks) == len(one.blocks)), one)
    receiving = [block for block in like.blocks if block.position is not None and block.name != LCA]
    printed = [block.block for block in receiving if block.paper is not None]
    numbers = [block.block for block in receiving or blocks]
    wanted = {numbers[at] for at in evenly(len(numbers), _BLOCKS)}
    if len(numbers) > _BLOCKS and 0 < len(printed) <= _BLOCKS:
        wanted = {numbers[0], *printed, numbers[-1]}
    return [block for block in one.blocks if block.block in wanted or block.name == LCA]


def _figure2_band(one: Findings, blocks: Sequence[BlockFindings], scale: Scale) -> Band:
    tokens: list[Tile | None] = []
    positions: list[Tile | None] = []
    for at, block in enumerate(blocks):
        rows = "layers" if block.name == LCA else "tokens"
        below = shape_text(block.tokens, rows) if at == 0 or block.tokens.shape != blocks[at - 1].tokens.shape else ""
        beside = at == 0
        tokens.append(
            Tile(
                heat(shown_map(block.tokens, block.grid), scale),
                title=_block_title(block),
                below="" if one.delivers else below,
                beside="tokens" if beside else "",
            )
        )
        if block.position is None:
            positions.append(Tile(message(_NOTHING)))
        else:
            paint = heat(shown_map(block.position, block.grid), scale)
            positions.append(Tile(paint, below=below, beside="position" if beside else ""))
    if one.last is not None:
        title = "after the\nlast block, x_L" if one.delivers else "after the last block"
        below = shape_text(one.last.before) if one.last.before.shape != blocks[-1].tokens.shape else ""
        tokens.append(Tile(heat(shown_map(one.last.before, one.last.grid), scale), title=title, below=below))
    if not one.delivers:
        return Band(one.label, [tokens], "nothing is delivered: tokens only")
    return Band(one.label, [tokens, positions])


def _block_title(block: BlockFindings) -> str:
    name = block.name if block.name == LCA else f"block {block.name}"
    if block.position is None:
        return name
    value = number(block.correlation.value)
    title = f"{name}\nr undefined" if block.correlation.value is None else f"{name}\nr = {value}"
    return title if block.paper is None else f"{title}\npaper: {number(block.paper)}"
