"""Checkpoints of other grids, schemes and layouts, made to fit a model."""

from __future__ import annotations

from math import isqrt
from typing import Any

from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from mpvg.tables import resize_table


def filter_checkpoint(state_dict: dict[str, Any], model: Any) -> dict[str, Tensor]:
    """Return `state_dict` with its position table and class token fitted to `model`.

    A class token that the model lacks is dropped with its row, a learned table is resampled to the model's grid and a
    sinusoid is the model's own. Everything else is left to timm's filter for vision transformers.

    Args:
        state_dict: Weights by name; may lie under "model" or "state_dict".
        model: The model that is to load them.

    Returns:
        Weights by the model's names.

    Raises:
        ValueError: The table has a number of rows that no known grid explains.
    """
    weights = dict(state_dict.get("model", state_dict.get("state_dict", state_dict)))
    table = weights.pop("pos_embed", None)
    has_class_token = "cls_token" in weights
    weights = checkpoint_filter_fn(weights, model)
    if not model.has_class_token:
        weights.pop("cls_token", None)
    if table is not None and model.pos_embed is not None:
        weights["pos_embed"] = _fit_table(table, has_class_token, model)
    return weights


def _fit_table(table: Tensor, has_class_token: bool, model: Any) -> Tensor:
    if model.pos_kind != "learn":
        return table if table.shape == model.pos_embed.shape else model.pos_embed.detach()
    grid = model.patch_embed.grid_size
    # a class token's row cannot be told from its shape alone: 196 rows are 14 x 14 patches, not a class token and 195
    for class_row in (has_class_token, False):
        patches = table.shape[1] - class_row
        if patches == grid[0] * grid[1]:
            old_size = grid
        elif isqrt(patches) ** 2 == patches:
            old_size = (isqrt(patches), isqrt(patches))
        else:
            continue
        if class_row and not model.has_class_row:
            table, class_row = table[:, 1:], False
        return resize_table(table, model.pos_kind, grid, old_size, class_row)
    raise ValueError(
        f"pos_embed has {table.shape[1]} rows, which is no square grid and not the model's {grid[0]} x {grid[1]}: "
        "build the model at the checkpoint's image size, load it, then call set_input_size."
    )
