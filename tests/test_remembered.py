"""Positions computed once a size: all that changes them must make a pass compute them anew."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from families import CEIT, FAMILIES, SWIN, VIT, Family, build, inputs
from helpers import images, perturb, small
from mpvg import convert, remembered
from remembering import Calls, assert_same, copied, fresh, position_norms, same, tables

FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
CASES = [
    pytest.param(family, scheme, id=f"{family.models[0]}-{scheme}")
    for family in FAMILIES
    for scheme in ("mpvg", "lape_gap", "pvg:last_norm=2", "gap_last")
]
every_family_and_scheme = pytest.mark.parametrize(("family", "scheme"), CASES)


@every_family_and_scheme
def test_once_a_size(family: Family, scheme: str) -> None:
    model = build(family, scheme, dynamic_img_size=True)
    calls, x, wide = Calls(model), inputs(family), inputs(family, size=family.wide)
    with torch.no_grad():
        expected, expected_wide = fresh(model, x), fresh(model, wide)
        calls()
        assert [torch.equal(model(x), expected) for _ in range(3)] == [True] * 3
        assert calls() == 1
        assert [torch.equal(model(wide), expected_wide) for _ in range(3)] == [True] * 3
        assert calls() == 1
        assert torch.equal(model(x), expected)
        model.forward_features(x)
        model.forward_intermediates(x)
        assert calls() == 0
        model.positions()
        assert calls() == 1, "asked for outside of a forward pass"


@every_family_and_scheme
def test_every_parameter_counts(family: Family, scheme: str) -> None:
    """Whatever parameter changes in place, remembered positions are those that would be computed."""
    model = build(family, scheme)
    used = 0
    with torch.no_grad():
        for parameter in model.parameters():
            before = model.positions_for()
            parameter += 0.3 * images(*parameter.shape)
            after = model.positions_for()
            used += after is before
            assert_same(after, model.positions())
    assert used > 0, "what positions do not depend on lets them be"


def optimizer_step(model: Any) -> None:
    optimizer = torch.optim.AdamW(position_norms(model)[-1].parameters(), lr=0.1)
    with torch.enable_grad():
        model(torch.zeros(2, 2, *model.patch_embed.img_size)).square().mean().backward()
    optimizer.step()


def foreach(model: Any) -> None:
    torch._foreach_mul_(list(position_norms(model)[-1].parameters()), 0.5)


def loaded(model: Any, assign: bool = False) -> None:
    model.load_state_dict(perturb(copy.deepcopy(model), seed=1).state_dict(), assign=assign)


def to_half_and_back(model: Any) -> None:
    model.half().float()


def resized(model: Any) -> None:
    model.set_input_size(img_size=model.patch_embed.img_size[0] * 2)


def norm_replaced(model: Any) -> None:
    owner = model if model.norm_pos is not None else next(b for b in model.all_blocks() if b.norm_pos is not None)
    owner.norm_pos = perturb(copy.deepcopy(owner.norm_pos), seed=2)


def same_parameters_elsewhere(model: Any) -> None:
    """A parameter replaced by another one with the same memory, written to as often as the first."""
    norm = position_norms(model)[-1]
    versions, memory = norm.weight._version, norm.weight.data
    norm.weight = nn.Parameter(memory)
    while norm.weight._version < versions:
        norm.weight.mul_(1.1)


def data_replaced(model: Any) -> None:
    position_norms(model)[-1].weight.data = torch.randn(position_norms(model)[-1].weight.shape)


def data_transposed(model: Any) -> None:
    rows = model.pos_embed.data
    strides = list(rows.stride())
    strides[-2:] = 1, rows.shape[-2]  # the same memory, read in another order
    model.pos_embed.data = rows.as_strided(rows.shape, strides)


def swapped(model: Any) -> None:
    weight = position_norms(model)[-1].weight
    torch.utils.swap_tensors(weight, nn.Parameter(torch.randn(weight.shape)))


def eps(model: Any) -> None:
    position_norms(model)[-1].eps = 0.5


def hooked(model: Any) -> None:
    position_norms(model)[-1].register_forward_hook(lambda module, args, output: 2 * output)


def parametrized(model: Any) -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(position_norms(model)[-1], "weight", Twice())


def own_forward(model: Any) -> None:
    norm = position_norms(model)[-1]
    norm.forward = lambda x: 3 * x


def pruned(model: Any) -> None:
    """A pruned weight is a plain attribute, computed from parameters in a hook."""
    norm = position_norms(model)[-1]
    prune.random_unstructured(norm, "weight", 0.5)


CHANGES: list[Callable[[Any], None]] = [
    optimizer_step, copied, foreach, loaded, partial(loaded, assign=True), to_half_and_back, resized, norm_replaced,
    same_parameters_elsewhere, data_replaced, data_transposed, swapped, eps, hooked, parametrized, own_forward,
    pruned,
]  # fmt: skip


@every_family_and_scheme
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: getattr(change, "__name__", "assigned"))
def test_a_change_is_seen(family: Family, scheme: str, change: Callable[[Any], None]) -> None:
    model = build(family, scheme)
    with torch.no_grad():
        before = model.positions_for()
        assert model.positions_for() is before
        torch.manual_seed(1)
        change(model)
        after = model.positions_for()
        assert after is not before
        assert_same(after, model.positions())
        x = inputs(family, size=model.patch_embed.img_size)
        assert torch.equal(model(x), fresh(model, x))


def test_changes_by_hand_change_positions() -> None:
    """Each change of the test above is one: the same positions would hide that an old table was used."""
    for change in CHANGES:
        model = small("mpvg")
        with torch.no_grad():
            before = model.positions()
            torch.manual_seed(1)
            change(model)
            after = model.positions()
        assert not all(same(one, two) for one, two in zip(tables(before), tables(after), strict=True)), change


@FAMILY
def test_another_type(family: Family) -> None:
    model = build(family, "mpvg")
    calls = Calls(model)
    with torch.no_grad():
        model(inputs(family))
        calls()
        model.double()
        x = inputs(family, dtype=torch.float64)
        expected = fresh(model, x)
        calls()
        assert torch.equal(model(x), expected)
        assert torch.equal(model(x), expected)
        assert calls() == 1


def test_switches_that_are_no_parameters() -> None:
    with torch.no_grad():
        model = build(VIT, "mpvg")
        before = model.positions_for()
        model.blocks[2].reads_initial = True
        assert not torch.equal(model.positions_for().blocks[2], before.blocks[2])
        model.last_source = 2
        assert_same(model.positions_for(), model.positions())
        swin = build(SWIN, "mpvg")
        swin.positions_for()
        swin.layers[1].downsample.norm.eps = 0.5
        assert_same(swin.positions_for(), swin.positions())
        before = swin.positions_for()
        swin.layers[1].merges_initial = True
        assert swin.positions_for() is not before
        ceit = build(CEIT, "mpvg")
        ceit.positions_for()
        ceit.lca.norm_pos = None
        assert ceit.positions_for().blocks[-1] is None


@pytest.mark.parametrize("family", [VIT, SWIN], ids=["vit", "swin"])
def test_the_grid_of_the_table(family: Family) -> None:
    model = build(family, "mpvg", dynamic_img_size=True)
    with torch.no_grad():
        high, wide = model.patch_embed.grid_size
        model.positions_for((high, wide))
        model.patch_embed.grid_size = (high // 2, 2 * wide)
        assert_same(model.positions_for((high, wide)), model.positions((high, wide)))


class Shifted(nn.LayerNorm):
    """A norm with a buffer."""

    shift: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("shift", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift


class Doubled(Shifted):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_buffers_classes_and_hooks_before() -> None:
    model = small("mpvg")
    norm: Any = Shifted(24).eval()
    model.norm_pos = norm
    with torch.no_grad():
        seen = [model.positions_for().last]
        norm.shift += 1
        seen.append(model.positions_for().last)
        norm.__class__ = Doubled
        seen.append(model.positions_for().last)
        norm.register_forward_pre_hook(lambda module, args: (args[0] ** 2,))
        seen.append(model.positions_for().last)
        assert torch.equal(seen[-1], model.positions().last)
    assert not any(torch.equal(one, two) for one, two in itertools.pairwise(seen))


def test_what_takes_the_address_of_another() -> None:
    """Memory and numbers that are let go are soon given to new ones."""
    model = small("mpvg", img_size=64)
    with torch.no_grad():
        for round_ in range(20):
            model.positions_for()
            model.pos_embed.data = torch.randn(1, 256, 24)
            model.pos_embed.data = torch.randn(1, 256, 24)
            assert_same(model.positions_for(), model.positions())
            model.norm_pos.eps = float(f"1e-{round_ % 3}")
            model.norm_pos.eps = float(f"1e-{round_ % 4}")
            assert_same(model.positions_for(), model.positions())


def test_kinds_of_tensors_that_are_not_known_are_not_remembered() -> None:
    class Other(Tensor):
        pass

    model = small("mpvg")
    model.norm_pos.weight = nn.Parameter(torch.ones(24).as_subclass(Other))
    with torch.no_grad():
        model.positions_for()
    assert model not in remembered._entries


def test_a_table_cut_short() -> None:
    model = small("mpvg")
    with torch.no_grad():
        model.positions_for()
        model.pos_embed.data = model.pos_embed.data[:, :8]  # at the same address
        assert_same(model.positions_for(), model.positions())


def test_a_gate_is_taken_in() -> None:
    """A block's `ls_pos` beside its `norm_pos` counts as a part."""
    model = convert(small("gap"), "mpvg").eval()
    with torch.no_grad():
        before = model.positions_for()
        assert model.positions_for() is before
        model.blocks[1].ls_pos.gamma += 1
        assert model.positions_for() is not before


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_a_fused_step_in_eval_mode(optimizer: Any) -> None:
    """Its kernels write without being counted."""
    model, x = small("mpvg"), images(2, 2, 16, 16)
    steps = optimizer(model.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        model(x)
    (model(x) * images(2, 7, seed=1)).sum().backward()
    steps.step()
    with torch.no_grad():
        assert torch.equal(model(x), copy.deepcopy(model)(x))
