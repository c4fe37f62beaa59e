"""Maps on the image: norms of tokens (the paper's figure 7), and how alike positions are (LaPE's figure)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mpvg.analysis.figures.maps import evenly
from mpvg.analysis.figures.numbers import wrapped
from mpvg.analysis.figures.series import LCA
from mpvg.analysis.figures.tiles import Band, Paint, Scale, Tile, TileFigure, heat, message, picture, sequential
from mpvg.analysis.measures import position_similarity
from mpvg.analysis.results import BlockFindings, Findings, TokenNorms

__all__ = ["similarity", "token_norms"]

_IMAGES, _TOGETHER, _BLOCKS = 4, 3, 8
_SIMILARITY = Scale("cosine similarity", -1.0, 1.0, "RdBu_r")

Grid = tuple[int, int]


def token_norms(findings: Sequence[Findings]) -> list[TileFigure]:
    """Lay out the paper's figure 7: images, and the norms of their tokens before and after the Last LN.

    Args:
        findings: The models.

    Returns:
        One figure for up to three models of one width, else one a model, on the same scales where the width is the
        same, as a norm grows with it; none where no model has norms.
    """
    by_width: dict[int, list[tuple[str, TokenNorms]]] = {}
    for one in findings:
        if one.norms is not None and one.last is not None:
            by_width.setdefault(one.last.before.shape[1], []).append((one.label, one.norms))
    figures = []
    for models in by_width.values():
        scales = (
            sequential("norm of x_L, before the Last LN", [norms.before for _, norms in models]),
            sequential("norm after the Last LN and its position", [norms.after for _, norms in models]),
        )
        groups = [models] if len(models) <= _TOGETHER else [[model] for model in models]
        figures += [_norms_figure(group, scales) for group in groups]
    return figures


def similarity(findings: Sequence[Findings]) -> TileFigure | None:
    """Lay out how similar the position in the grid's centre is to every other one, for pos_0 and blocks.

    Of sequences, how similar all positions are to each other.

    Args:
        findings: The models, a band for each that has a position.

    Returns:
        The figure; None where no model has any.
    """
    bands = [_similarity_band(one) for one in findings if one.delivers or one.initial is not None]
    return TileFigure(bands, [_SIMILARITY], widest=110) if bands else None


def _norms_figure(models: Sequence[tuple[str, TokenNorms]], scales: tuple[Scale, Scale]) -> TileFigure:
    first = models[0][1]
    shared = all(np.array_equal(norms.images, first.images) for _, norms in models)
    rows = []
    for at in range(min(_IMAGES, len(first.images))):
        row: list[Tile | None] = []
        for label, norms in models:
            name = f"{wrapped(label, 26 if len(models) < 3 else 17)}\n" if len(models) > 1 else ""
            if norms is first or not shared:
                beside = wrapped(norms.names[at], 15) if norms is first else ""
                title = "image" if shared else f"{name}image"
                row.append(Tile(picture(norms.images[at]), title=title if at == 0 else "", beside=beside))
            for when, values, scale in (("before", norms.before, scales[0]), ("after", norms.after, scales[1])):
                row.append(Tile(heat(values[at], scale, aspect="equal"), title=f"{name}{when}" if at == 0 else ""))
        rows.append(row)
    return TileFigure([Band(models[0][0] if len(models) == 1 else "", rows)], scales, widest=150)


def _similarity_band(one: Findings) -> Band:
    received = [block for block in one.blocks if block.position is not None]
    blocks = [block for block in received if block.name != LCA]
    blocks = [blocks[at] for at in evenly(len(blocks), _BLOCKS)]
    grids = list(dict.fromkeys(block.grid for block in one.blocks if block.grid is not None))
    tiles = []
    if one.initial is not None:
        tiles.append(Tile(_of_centre(one.initial, one.initial_grid), title="pos_0"))
    for block in (*blocks, *(block for block in received if block.name == LCA)):
        assert block.position is not None
        tiles.append(Tile(_of_centre(block.position, block.grid), title=_similarity_title(block, grids)))
    text = "" if received else "nothing is delivered to the blocks"
    return Band(one.label, [tiles], text)


def _similarity_title(block: BlockFindings, grids: Sequence[Grid]) -> str:
    if block.grid is None:
        return f"{block.name}\nlayer by layer"
    if len(grids) == 1:
        return f"block {block.name}"
    return f"block {block.name}\n{block.grid[0]} × {block.grid[1]}, stage {grids.index(block.grid) + 1}"


def _of_centre(table: Tensor, grid: Grid | None) -> Paint:
    """Draw one row of the similarities as a map, or all of them where rows lie on no grid or a single row."""
    found = position_similarity(table)
    if found is None:
        return message("undefined:\na position\nis zero")
    if grid is None or grid[0] == 1:
        return heat(found.numpy(), _SIMILARITY, aspect="equal")
    height, width = grid
    return heat(found[(height // 2) * width + width // 2].reshape(grid).numpy(), _SIMILARITY, aspect="equal")
