"""Positions computed once a size: when a pass may use remembered ones, and all that must make it compute anew."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.models import create_feature_extractor
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.utils import parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from families import CEIT, FAMILIES, SWIN, VIT, Family, build, inputs, tame
from helpers import images, perturb, small
from mpvg import convert, fold, remembered
from mpvg.analysis.interventions import delivering
from mpvg.models.common import plain_attention
from mpvg.position import Positions

FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
CASES = [
    pytest.param(family, scheme, id=f"{family.models[0]}-{scheme}")
    for family in FAMILIES
    for scheme in ("mpvg", "lape_gap", "pvg:last_norm=2", "gap_last")
]
every_family_and_scheme = pytest.mark.parametrize(("family", "scheme"), CASES)


def position_norms(model: Any) -> list[Any]:
    return [module for name, module in model.named_modules() if name.endswith("norm_pos")]


class Calls:
    """How often each position norm has run since this was last asked: the same for all."""

    def __init__(self, model: Any) -> None:
        self.norms = position_norms(model)
        self.counts = [0] * len(self.norms)
        for index, norm in enumerate(self.norms):
            norm.register_forward_hook(partial(self._count, index))

    def _count(self, index: int, *args: Any) -> None:
        self.counts[index] += 1

    def __call__(self) -> int:
        (count,) = set(self.counts)
        self.counts = [0] * len(self.norms)
        return count


def fresh(model: Any, x: Tensor) -> Tensor:
    """What a model that remembers nothing puts out."""
    with torch.no_grad():
        return copy.deepcopy(model)(x)


def tables(positions: Positions) -> list[Tensor | None]:
    return [positions.initial, *positions.blocks, positions.last]


def same(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.shape == two.shape and torch.equal(one, two)


def assert_same(found: Positions, expected: Positions) -> None:
    assert all(same(one, two) for one, two in zip(tables(found), tables(expected), strict=True))


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


def copied(model: Any) -> None:
    position_norms(model)[-1].weight.copy_(torch.randn(position_norms(model)[-1].weight.shape))


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


@FAMILY
def test_gradients(family: Family) -> None:
    """In training, and in eval mode with gradients, positions are computed in each pass and receive gradients."""
    model, x = build(family, "mpvg"), inputs(family)
    with torch.no_grad():
        model(x)
    calls = Calls(model)
    for training in (True, False):
        model.train(training)
        for _ in range(2):
            model.zero_grad()
            (model(x) * images(2, 7, seed=1)).sum().backward()
            assert calls() == 1
            assert all(p.grad.abs().max() > 0 for norm in position_norms(model) for p in norm.parameters())
    model.train()
    with torch.no_grad():
        model(x)
        model(x)
    assert calls() == 2
    model.eval()
    for norm in position_norms(model):
        norm.train()
    with torch.no_grad():
        model(x)
        model(x)
    assert calls() == 2, "a norm in training mode"


@FAMILY
def test_inference_mode_and_no_grad(family: Family) -> None:
    model, x = build(family, "mpvg"), inputs(family)
    calls = Calls(model)
    with torch.inference_mode():
        expected = model(x).clone()
    with torch.no_grad():
        assert torch.equal(model(x), expected)
        positions = model.positions_for()
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
    assert calls() == 1
    assert not positions.last.is_inference()
    assert torch.equal(model(x), expected)
    weight = nn.Parameter(torch.ones(()))
    (weight * positions.last * positions.last).sum().backward()  # as whoever takes them out may do


def test_inference_tensors_as_parameters() -> None:
    """They do not count what is written to them."""
    with torch.inference_mode():
        model = small("mpvg")
        before = model.positions_for().last
        position_norms(model)[-1].weight.mul_(2)
        assert not torch.equal(model.positions_for().last, before)


def test_autocast() -> None:
    model, x = small("mpvg"), images(2, 2, 16, 16)
    calls = Calls(model)
    with torch.no_grad():
        plain = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            first = model(x)
            assert torch.equal(model(x), first)
            assert torch.equal(fresh(model, x), first)
        with torch.autocast("cpu", torch.float16):
            half = model(x)
        assert torch.equal(model(x), plain)
    assert first.dtype == torch.bfloat16
    assert half.dtype == torch.float16
    assert calls() == 3


def test_swin_merges_in_the_type_of_autocast() -> None:
    model = build(SWIN, "mpvg")
    with torch.no_grad():
        plain = model.positions_for()
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(model.positions_for(), model.positions())
        assert not torch.equal(model.positions().last, fold(model.bfloat16()).positions().last.float())
        assert_same(model.float().positions_for(), model.positions())
        assert plain.last.dtype == torch.float32


@FAMILY
def test_functional_call(family: Family) -> None:
    model, x = build(family, "mpvg"), inputs(family)
    other = tame(perturb(copy.deepcopy(model), seed=1))
    with torch.no_grad():
        weights = {name: tensor.detach() for name, tensor in (*other.named_parameters(), *other.named_buffers())}
        wanted = functional_call(
            copy.deepcopy(model), weights, (x,)
        )  # tensors that are no parameters round differently
        torch.testing.assert_close(wanted, other(x), rtol=1e-4, atol=1e-5)
        own = model(x)
        for _ in range(2):
            assert torch.equal(functional_call(model, weights, (x,)), wanted)
            assert torch.equal(model(x), own)
        norms = {name: tensor for name, tensor in weights.items() if "norm_pos" in name}
        assert not torch.equal(functional_call(model, norms, (x,)), own)


def test_ensembles_by_vmap() -> None:
    models = [small("mpvg"), perturb(small("mpvg"), seed=1)]
    x, skeleton = images(2, 2, 16, 16), models[0]
    with torch.no_grad(), plain_attention(skeleton):
        expected = torch.stack([model(x) for model in models])
        parameters, buffers = stack_module_state(models)
        found = torch.vmap(lambda p, b: functional_call(skeleton, (p, b), (x,)))(parameters, buffers)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(skeleton(x), expected[0])
        table = skeleton.pos_embed.detach()
        pushed = torch.func.jvp(lambda t: functional_call(skeleton, {"pos_embed": t}, (x,)), (table,), (table,))
        assert pushed[1].abs().max() > 0


@FAMILY
def test_recorded_and_transformed_passes_compute(family: Family) -> None:
    """What is recorded is the computation and not its result: a used model gives the same graph as a new one."""
    model, x = build(family, "mpvg"), inputs(family)
    norms = {f"{name}.weight" for name, module in model.named_modules() if module in position_norms(model)}
    with torch.no_grad():
        expected = model(x)
        traced = torch.jit.trace(copy.deepcopy(model), x)
        program = torch.export.export(model, (x,))
        graph = create_feature_extractor(model, ["head"]) if family is not SWIN else torch.fx.symbolic_trace(model)
        for found in (traced, program.module(), torch.jit.script(model)):
            torch.testing.assert_close(found(x), expected, rtol=1e-4, atol=1e-5)
        copied(model)
        assert not torch.equal(model(x), expected)
        named = graph(x)["head"] if family is not SWIN else graph(x)
        torch.testing.assert_close(named, model(x), rtol=1e-4, atol=1e-5)
        used = {spec.target for spec in program.graph_signature.input_specs if spec.target}
        read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
        assert norms <= used
        assert all(any(name.endswith(norm.replace(".", "_")) for name in read) for norm in norms)
        model.train().eval()
        with FlopCounterMode(display=False) as first:
            model(x)
        model(x)
        with FlopCounterMode(display=False) as second:
            model(x)
        assert first.get_total_flops() == second.get_total_flops()


def test_proxies_are_not_remembered() -> None:
    class LastPosition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor | None:
            return self.model.positions_for().last

    model = small("mpvg")
    with torch.no_grad():
        graph = torch.fx.symbolic_trace(LastPosition())
        assert torch.equal(graph(), model.positions().last)
    assert model not in remembered._entries


def test_traced_by_jit_after_use() -> None:
    model, x = small("mpvg"), images(2, 2, 16, 16)
    with torch.no_grad():
        model(x)
        traced = torch.jit.trace(model, x)
        for module in (model, traced):
            dict(module.named_parameters())["blocks.1.norm_pos.weight"].copy_(torch.arange(24.0))
        torch.testing.assert_close(traced(x), model(x))


def test_compiled_after_use() -> None:
    torch._dynamo.reset()
    model, x = small("mpvg"), images(2, 2, 16, 16)
    with torch.no_grad():
        model(x)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        compiled(x)
        copied(model)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_function_modes_are_passed_by() -> None:
    class Doubling(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            return 2 * result if func is torch.nn.functional.layer_norm else result

    model = small("mpvg")
    with torch.no_grad():
        with Doubling():
            doubled = model.positions_for()
        assert torch.equal(doubled.last, 2 * model.positions_for().last)
        with Doubling():
            assert_same(model.positions_for(), doubled)


def test_meta_tensors_and_fake_ones_are_not_remembered() -> None:
    model = small("mpvg").to("meta")
    with torch.no_grad():
        model(torch.empty(1, 2, 16, 16, device="meta"))
    assert model not in remembered._entries


def test_other_positions_are_delivered_and_not_remembered() -> None:
    model, x = small("mpvg"), images(2, 2, 16, 16)
    with torch.no_grad():
        own = model(x)
        given = model.positions()
        for block in range(1, 4):  # functions one after another, at one address
            other = given._replace(blocks=[None if i == block else table for i, table in enumerate(given.blocks)])
            with delivering(model, other):
                assert model.positions_for() is other
                assert not torch.equal(model(x), own)
        assert torch.equal(model(x), own)


def test_functions_one_after_another_at_one_address() -> None:
    model = small("mpvg")
    with torch.no_grad():
        for factor in range(2, 10):
            model.norm_pos.forward = lambda x, factor=factor: factor * x
            assert torch.equal(model.positions_for().last, factor * model.pos_embed)
            del model.norm_pos.forward
        for factor in range(2, 10):
            handle = model.norm_pos.register_forward_hook(lambda *args, factor=factor: factor * args[2])
            assert_same(model.positions_for(), model.positions())
            handle.remove()


def test_a_folded_model_has_nothing_to_remember() -> None:
    model, x = small("mpvg"), images(2, 2, 16, 16)
    with torch.no_grad():
        model(x)
        folded = fold(model)
        folded(x)
    assert folded not in remembered._entries


@pytest.mark.parametrize("mode", [True, False])
def test_train_and_eval_forget(mode: bool) -> None:
    """A write through `.data` leaves no trace in a tensor."""
    model = small("mpvg")
    wrapper = nn.Sequential(model)
    with torch.no_grad():
        before = model.positions_for()
        model.norm_pos.weight.data.mul_(2)
        assert model.positions_for() is before, "seen after all: say so in the docstring"
        wrapper.train(mode)
        wrapper.eval()
        assert_same(model.positions_for(), model.positions())
        model.norm_pos.weight.data.mul_(2)
        remembered.forget(model)
        assert_same(model.positions_for(), model.positions())


def test_few_sizes_are_kept() -> None:
    model = small("mpvg", dynamic_img_size=True)
    calls = Calls(model)
    sides = [4 * side for side in range(2, 3 + remembered.SIZES)]  # one more than are kept
    with torch.no_grad():
        for side in sides:
            model(images(1, 2, side, side))
        assert len(remembered._entries[model]) == remembered.SIZES
        calls()
        model(images(1, 2, sides[1], sides[1]))  # now the last one used
        assert calls() == 0
        model(images(1, 2, sides[0], sides[0]))
        model(images(1, 2, sides[1], sides[1]))
        assert calls() == 1
        copied(model)
        model(images(1, 2, sides[0], sides[0]))
        assert len(remembered._entries[model]) == 1, "what is wrong is let go"


def test_a_model_that_is_gone_is_forgotten() -> None:
    model = small("mpvg")
    model.norm_pos.register_forward_hook(lambda *args, model=model: None)  # hooks often know their model
    gc.collect()
    alive, count = weakref.ref(model), len(remembered._entries)
    with torch.no_grad():
        model(images(1, 2, 16, 16))
    assert len(remembered._entries) == count + 1
    del model
    gc.collect()
    assert alive() is None
    assert len(remembered._entries) == count


@FAMILY
def test_copies_and_files_are_those_of_an_unused_model(family: Family) -> None:
    model, x = build(family, "mpvg"), inputs(family)
    before, keys, attributes = len(pickle.dumps(model)), list(model.state_dict()), set(vars(model))
    with torch.no_grad():
        expected = model(x)
    assert len(pickle.dumps(model)) == before
    assert (list(model.state_dict()), set(vars(model))) == (keys, attributes)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert twin not in remembered._entries
        with torch.no_grad():
            assert torch.equal(twin(x), expected)
            copied(twin)
            assert not torch.equal(twin(x), expected)
            assert torch.equal(model(x), expected)
