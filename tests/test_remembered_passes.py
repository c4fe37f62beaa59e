"""Which passes may use remembered positions, and how long they are kept."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from timm.models import create_feature_extractor
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from families import FAMILIES, SWIN, Family, build, inputs, tame
from helpers import images, perturb, small
from mpvg import fold, remembered
from mpvg.analysis.interventions import delivering
from mpvg.models.common import plain_attention
from remembering import Calls, assert_same, copied, fresh, position_norms

FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])


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
