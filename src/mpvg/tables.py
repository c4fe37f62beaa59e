"""Initial position tables pos_0: learned or sinusoid, at any grid, spread over a token stream.

Sources: T2T-ViT (1-D sinusoid); MAE (2-D sinusoid); timm (resampling of learned tables).
"""

import torch
from timm.layers import register_notrace_function, resample_abs_pos_embed
from torch import Tensor

POS_EMBEDS = ("learn", "sincos1d", "sincos2d", "none")


def sincos1d(rows: int, width: int) -> Tensor:
    """Return the sinusoid table of T2T-ViT: sin (even j) or cos (odd j) of p / 10000^(2 floor(j/2) / D).

    Args:
        rows: Number of rows N, the class token's among them.
        width: Width D.

    Returns:
        Table (1, N, D) in float64.

    Source:
        T2T-ViT (ICCV 2021), after "Attention is all you need", section 3.5.
    """
    j = torch.arange(width)
    angle = torch.arange(rows, dtype=torch.float64)[:, None] / 10000.0 ** (2 * (j // 2) / width)[None, :]
    return torch.where(j % 2 == 0, angle.sin(), angle.cos())[None]


def sincos2d(grid_size: tuple[int, int], width: int) -> Tensor:
    """Return the sinusoid table of MAE: a quarter of the width each for sin x, cos x, sin y and cos y.

    Args:
        grid_size: Rows and columns (H, W) of the token grid.
        width: Width D, a multiple of 4.

    Returns:
        Table (1, H*W, D) in float64, tokens row by row.

    Source:
        MAE (CVPR 2022), after MoCo v3; frequencies 1 / 10000^(i / (D/4)).
    """
    quarter = width // 4
    frequency = 1.0 / 10000.0 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    row = torch.arange(grid_size[0], dtype=torch.float64)[:, None].expand(grid_size[0], grid_size[1]).reshape(-1)
    column = torch.arange(grid_size[1], dtype=torch.float64)[None, :].expand(grid_size[0], grid_size[1]).reshape(-1)
    x, y = column[:, None] * frequency, row[:, None] * frequency
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)[None]


@torch.fx.wrap
@register_notrace_function
def resize_table(
    table: Tensor,
    kind: str,
    new_size: tuple[int, int],
    old_size: tuple[int, int],
    class_row: bool,
    antialias: bool = True,
) -> Tensor:
    """Return a position table for another grid: a learned one resampled, a sinusoid generated anew.

    Args:
        table: Table (1, [1 +] H*W, D).
        kind: "learn", "sincos1d" or "sincos2d".
        new_size: Grid (H, W) wanted.
        old_size: Grid (H, W) of the table.
        class_row: Whether the first row is the class token's.
        antialias: Whether resampling is timm's, or PyTorch's without it, as ViT-Adapter's official code has it; their
            bicubic kernels differ for larger tables too.

    Returns:
        Table (1, [1 +] H'*W', D) in the table's dtype.
    """
    if kind == "learn":
        prefix = 1 if class_row else 0
        return resample_abs_pos_embed(table, new_size, old_size, num_prefix_tokens=prefix, antialias=antialias)
    if new_size == old_size:
        return table
    return make_sinusoid(kind, new_size, table.shape[2], class_row).to(table)


def make_sinusoid(kind: str, grid_size: tuple[int, int], width: int, class_row: bool) -> Tensor:
    """Return the sinusoid table of `kind` for a grid; a class token is row 0 in 1-D and a zero row in 2-D."""
    if kind == "sincos1d":
        return sincos1d(grid_size[0] * grid_size[1] + (1 if class_row else 0), width)
    table = sincos2d(grid_size, width)
    return torch.cat([torch.zeros_like(table[:, :1]), table], dim=1) if class_row else table


def token_rows(rows: Tensor, class_row: bool, num_rowless: int, keep: Tensor | None = None) -> Tensor:
    """Spread a table over a token stream: zeros for tokens without a row, nothing for patches that were dropped.

    Args:
        rows: Table (1, [1 +] P, D).
        class_row: Whether the first row is the class token's.
        num_rowless: Number of prefix tokens without a row (registers), which follow the class token.
        keep: Patches (B, K) that patch dropout kept; None for all P.

    Returns:
        One row a token, (1 or B, N, D).
    """
    prefix = 1 if class_row else 0
    if num_rowless > 0:
        zeros = torch.zeros_like(rows[:, :1]).expand(-1, num_rowless, -1)
        rows = torch.cat([rows[:, :prefix], zeros, rows[:, prefix:]], dim=1)
        prefix += num_rowless
    if keep is not None:
        rows = rows.expand(keep.shape[0], -1, -1)
        kept = rows[:, prefix:].gather(1, keep.unsqueeze(-1).expand(-1, -1, rows.shape[2]))
        rows = torch.cat([rows[:, :prefix], kept], dim=1)
    return rows
