"""Deformable attention: the equation place by place, transformers' own, gradients, and where heads begin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import images, perturb, relative
from mpvg.dense.deformable import MultiScaleDeformableAttention, cell_centres, multi_scale_deformable_attention

SHAPES = [(5, 4), (3, 2), (2, 1)]
N = sum(height * width for height, width in SHAPES)


def drawn(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Values, places that also lie outside the maps, and weights."""
    values = images(2, N, 3, 4, seed=1, dtype=dtype)
    places = 0.5 + 0.4 * images(2, 7, 3, len(SHAPES), 2, 2, seed=2, dtype=dtype)
    return values, places, images(2, 7, 3, len(SHAPES), 2, seed=3, dtype=dtype)


def looped(values: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """The equation, place by place and corner by corner."""
    batch, queries, heads, levels, points, _ = places.shape
    out = values.new_zeros(batch, queries, heads, values.shape[3])
    for b, q, h, level, k in np.ndindex(batch, queries, heads, levels, points):
        height, width = SHAPES[level]
        first = sum(one * other for one, other in SHAPES[:level])
        x, y = (float(part) for part in places[b, q, h, level, k] * torch.tensor([width, height]) - 0.5)
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= row < height and 0 <= column < width:
                    part = (1 - abs(y - row)) * (1 - abs(x - column))
                    out[b, q, h] += weights[b, q, h, level, k] * part * values[b, first + row * width + column, h]
    return out.flatten(2)


def test_deformable_attention_is_the_equation() -> None:
    values, places, weights = drawn()
    expected = looped(values, places, weights)
    assert relative(multi_scale_deformable_attention(values, SHAPES, places, weights), expected) < 1e-12
    assert (
        relative(multi_scale_deformable_attention(values, SHAPES, places.flip(-1), weights), expected) > 1e-2
    )  # x for y
    assert (
        relative(multi_scale_deformable_attention(values.flip(2), SHAPES, places, weights), expected) > 1e-2
    )  # another head's


def test_deformable_attention_is_that_of_transformers() -> None:
    theirs = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    values, places, weights = drawn(torch.float32)
    expected = theirs.MultiScaleDeformableAttention()(values, None, SHAPES, None, places, weights, 64)
    assert relative(multi_scale_deformable_attention(values, SHAPES, places, weights), expected) < 1e-5


def test_gradients_of_deformable_attention() -> None:
    given = [one.requires_grad_() for one in drawn()]
    assert torch.autograd.gradcheck(lambda *of: multi_scale_deformable_attention(of[0], SHAPES, of[1], of[2]), given)
    attention = MultiScaleDeformableAttention(6, num_heads=3, num_levels=3, num_points=2, ratio=0.5).double()
    perturb(attention)
    queries, rows = images(1, 2, 6, dtype=torch.float64), images(1, N, 6, seed=1, dtype=torch.float64)
    centres = cell_centres([(1, 2)], dtype=torch.float64)
    inputs = [queries.requires_grad_(), rows.requires_grad_()]
    assert torch.autograd.gradcheck(lambda q, v: attention(q, centres, v, SHAPES), inputs)


def test_heads_start_in_directions_of_their_own() -> None:
    attention = MultiScaleDeformableAttention(8, num_heads=4, num_levels=2, num_points=3)
    offsets = attention.sampling_offsets.bias.view(4, 2, 3, 2)
    assert torch.allclose(offsets[:, 1], offsets[:, 0])
    expected = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for step in range(3):
        torch.testing.assert_close(offsets[:, 0, step], (step + 1) * expected, atol=1e-6, rtol=0)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 6 has no 4 equal heads"):
        MultiScaleDeformableAttention(6, num_heads=4)
