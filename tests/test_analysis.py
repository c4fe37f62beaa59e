"""Correlation of tokens and delivered positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from families import FAMILIES, Family, build, inputs
from helpers import images, small
from mpvg.analysis.measures import correlation
from mpvg.analysis.record import correlation_by_block


def test_correlation_of_known_maps() -> None:
    a, b = images(5, 7, seed=1), images(5, 7, seed=2)
    assert correlation(a, -a) == pytest.approx(-1)
    assert correlation(a, 2 * a + 3) == pytest.approx(1)
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.flatten(), b.flatten())[0, 1], abs=1e-12)
    assert correlation(a, torch.full_like(a, 0.1)) is None


@pytest.mark.parametrize("scheme", ["mpvg", "lape"])
def test_recorded_tokens_are_what_positions_are_added_to(scheme: str) -> None:
    model, x = small(scheme, reg_tokens=2), images(6, 2, 16, 16)
    with torch.no_grad():
        leaving = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    found = correlation_by_block(model, x)
    assert list(found) == [block for block, source in enumerate(model.plan.blocks) if source]
    for block in range(1, 4):
        tokens = model.blocks[block].norm1(leaving[block - 1]).mean(dim=0)
        table = model.positions().blocks[block][0, int(model.has_class_token) :]
        assert found[block] == pytest.approx(correlation(tokens, table), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
def test_every_family_has_its_point_at_each_block_that_receives(family: Family) -> None:
    model, x = build(family, "mpvg"), inputs(family, batch=6)
    found = correlation_by_block(model, x)
    assert list(found) == [block for block, source in enumerate(model.plan.blocks) if source]
    tokens: list[torch.Tensor] = []
    last = family.depth - 1
    model.all_blocks()[last].norm1.register_forward_hook(lambda *args: tokens.append(args[2]))
    model(x)
    assert found[last] == pytest.approx(correlation(tokens[0].mean(dim=0), model.positions().blocks[last][0]), abs=1e-6)


def test_nothing_is_recorded_where_nothing_is_delivered() -> None:
    assert correlation_by_block(small("gap"), images(2, 2, 16, 16)) == {}
