"""Cheap masks of dropout: as often, as unbiased and as independent as PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from scipy.stats import chisquare
from torch import nn

import mpvg  # noqa: F401  # registers the models
from mpvg.train.dropout import CheapDropout, cheapen_dropout

COMPILED = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])


def dropout(p: float, *, compiled: bool) -> Any:
    made = CheapDropout(p)
    if compiled:  # by the compiler's front end alone: the numbers are the same, and there is nothing to build
        made.compile(backend="eager")
    return made


@COMPILED
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_often_as_asked(p: float, compiled: bool) -> None:
    torch.manual_seed(0)
    drop = dropout(p, compiled=compiled)
    kept = torch.stack([drop(torch.ones(8, 64, 64)) > 0 for _ in range(8)])  # calls, heads, queries, keys
    count = kept.numel()
    assert chisquare([kept.sum(), count - kept.sum()], [(1 - p) * count, p * count]).pvalue > 1e-3
    for dim in range(4):  # each call, head, query and key by itself
        shares = kept.flatten().view(kept.shape).movedim(dim, 0).flatten(1).sum(1)
        variance = p * (1 - p) * kept[0].numel() * 8 / len(shares)
        z = (shares - (1 - p) * count / len(shares)) / variance**0.5
        assert z.square().sum().item() == pytest.approx(len(shares), abs=5 * (2 * len(shares)) ** 0.5)
    for dim in range(4):  # neighbours, and two calls, fall together as often as independent ones
        first, second = kept.movedim(dim, 0)[:-1], kept.movedim(dim, 0)[1:]
        share = (first & second).double().mean().item()
        assert share == pytest.approx((1 - p) ** 2, abs=6 * (0.25 / first.numel()) ** 0.5)


@COMPILED
def test_values_that_stay_are_scaled(compiled: bool) -> None:
    drop = dropout(0.1, compiled=compiled)
    x = torch.randn(3, 5, 7, requires_grad=True)  # 105 values, not a multiple of four
    torch.manual_seed(1)
    y = drop(x)
    stays = y != 0
    assert 60 < stays.sum() < 105
    assert torch.allclose(y[stays], x[stays] / 0.9, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient != 0, stays)
    torch.manual_seed(1)
    assert torch.equal(drop(x), y)
    assert not torch.equal(drop(x), y)
    assert drop(x.bfloat16()).dtype == torch.bfloat16
    drop.eval()
    assert drop(x) is x


def test_the_ends() -> None:
    x = torch.randn(9)
    assert torch.equal(CheapDropout(0.0)(x), x)
    assert torch.equal(CheapDropout(1.0)(x), torch.zeros(9))


def test_a_model_keeps_its_function_and_names() -> None:
    model: Any = timm.create_model("mpvg_vit_lite_7_4_32").eval()
    x = torch.randn(2, 3, 32, 32)
    before, names = model(x), list(model.state_dict())
    cheapen_dropout(model)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0}
    assert kinds == {CheapDropout}
    assert not model.blocks[0].attn.fused_attn
    assert list(model.state_dict()) == names
    assert torch.allclose(model(x), before, atol=1e-5)
    model.train()
    assert not torch.equal(model(x), model(x))
    plain: Any = timm.create_model("mpvg_deit_tiny_patch16_224", device="meta")
    cheapen_dropout(plain)
    assert all(type(module) is not CheapDropout for module in plain.modules())
