"""Multi-scale deformable attention: each query reads a few places of several maps, and learns which.

    y_q = W_o concat_h sum_l sum_k A_hqlk (W_v x_l)_h(p_q + dp_hqlk)

Places between pixels are read bilinearly, those outside a map are zero.
Source: Deformable DETR (ICLR 2021), equation 3; ViT-Adapter (ICLR 2023) uses it between a ViT and its spatial prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample


def multi_scale_deformable_attention(
    values: Tensor, shapes: Sequence[tuple[int, int]], places: Tensor, weights: Tensor
) -> Tensor:
    """Return the weighted sum of the values at places of several maps.

    Args:
        values: (B, N, heads, D), the maps' rows one after the other: N is the sum of their H * W.
        shapes: (H, W) of each map.
        places: (B, Q, heads, levels, points, 2), x and y as parts of a map's width and height; 0.5 is its centre.
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * D), in the type of the values.

    Source:
        Deformable DETR, equation 3, without its projections.
    """
    # (B heads) in front, and the level before it: each level is one grid_sample of all heads, added to those before,
    # so that what was read of one level is let go before the next where no gradient needs it.
    grids = (2 * places - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    parts = weights.permute(3, 0, 2, 1, 4).flatten(1, 2).unsqueeze(2)
    maps = values.to(places.dtype).permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], dim=2)
    read: Tensor | None = None
    for (height, width), rows, grid, part in zip(shapes, maps, grids, parts, strict=True):
        found = grid_sample(rows.unflatten(2, (height, width)), grid, mode="bilinear", align_corners=False)
        summed = (found * part).sum(-1)
        read = summed if read is None else read + summed
    assert read is not None
    return read.unflatten(0, values.shape[:1] + values.shape[2:3]).flatten(1, 2).transpose(1, 2).to(values.dtype)


class MultiScaleDeformableAttention(nn.Module):
    """Attention of queries to a few places of several maps, around each query's own.

    Args:
        dim: Width D of queries and values.
        num_heads: Heads; they divide the width of the values.
        num_levels: Maps.
        num_points: Places a query, head and map.
        ratio: Width of the values inside, as a part of D.

    Raises:
        ValueError: The heads do not divide the width.

    Source:
        Deformable DETR, equation 3 and appendix A.4 (initialisation).
    """

    def __init__(
        self, dim: int, *, num_heads: int = 6, num_levels: int = 1, num_points: int = 4, ratio: float = 1.0
    ) -> None:
        super().__init__()
        width = int(dim * ratio)
        if width % num_heads:
            raise ValueError(f"deformable attention of width {width} has no {num_heads} equal heads: name a divisor.")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        places = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, 2 * places)
        self.attention_weights = nn.Linear(dim, places)
        self.value_proj = nn.Linear(dim, width)
        self.output_proj = nn.Linear(width, dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start with each head looking in a direction of its own, a pixel further with every point."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ring = torch.stack([angles.cos(), angles.sin()], dim=-1)
        ring = ring / ring.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1).view(1, 1, -1, 1)
        offsets = (ring.view(-1, 1, 1, 2) * steps).expand(-1, self.num_levels, -1, -1)
        self.sampling_offsets.bias.copy_(offsets.reshape(-1))
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, references: Tensor, values: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Attend.

        Args:
            queries: (B, Q, D).
            references: Where each query is (Q, 2), x and y as parts of the image's width and height.
            values: Rows of the maps (B, N, D), one map after the other.
            shapes: (H, W) of each map.

        Returns:
            (B, Q, D).
        """
        grouped = (self.num_heads, self.num_levels, self.num_points)
        sizes = references.new_tensor([(width, height) for height, width in shapes])
        offsets = self.sampling_offsets(queries).unflatten(-1, (*grouped, 2))
        places = references[:, None, None, None] + offsets.to(references.dtype) / sizes[:, None]
        weights = self.attention_weights(queries).to(references.dtype)
        weights = weights.unflatten(-1, (self.num_heads, -1)).softmax(-1).unflatten(-1, grouped[1:])
        rows = self.value_proj(values).unflatten(-1, (self.num_heads, -1))
        return self.output_proj(multi_scale_deformable_attention(rows, shapes, places, weights))


def cell_centres(
    shapes: Sequence[tuple[int, int]], *, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the centres of the cells of maps, row by row, one map after the other.

    Args:
        shapes: (H, W) of each map.
        device: Where to compute.
        dtype: Of the result; half precision would not tell the cells of a large map apart.

    Returns:
        (N, 2), x and y as parts of the image's width and height.
    """
    of = {"device": device, "dtype": dtype}
    centres = []
    for height, width in shapes:
        y = (torch.arange(height, **of) + 0.5) / height  # type: ignore[arg-type]
        x = (torch.arange(width, **of) + 0.5) / width  # type: ignore[arg-type]
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        centres.append(torch.stack([columns.reshape(-1), rows.reshape(-1)], dim=-1))
    return torch.cat(centres)
