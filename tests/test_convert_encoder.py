"""Encoders of transformers converted: the same function at first, then the schemes' equations, whatever runs them."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders import ALL, DEPTH, HEADS, IDS, LENGTH, PAD, ROWS, TWO, VISIBLE, WIDTH, build, converted, tokens
from helpers import relative
from mpvg import SCHEMES, PositionScheme, convert, fold
from reference import Switches
from reference_encoder import BERT, DISTILBERT, run

transformers = pytest.importorskip("transformers")

JOINED = [name for name, scheme in SCHEMES.items() if scheme.join_input]
MORE = ("mpvg:last_norm=2", "pvg_cls:last_norm=0", "mpvg:hierarchical=false,first_block=true")


def switches_of(scheme: str) -> Switches:
    plan, parsed = PositionScheme.parse(scheme).plan(DEPTH), PositionScheme.parse(scheme)
    return Switches(
        parsed.class_token, plan.join_input, parsed.layerwise, parsed.hierarchical, bool(plan.blocks[0]), plan.last
    )


def expected(
    kind: str, model: Any, switches: Switches, *, ids: Tensor = IDS, position_ids: Tensor | None = None
) -> list[Tensor]:
    names = DISTILBERT if kind == "DistilBert" else BERT
    if position_ids is None:
        position_ids = torch.arange(ids.shape[1])[None]
    return run(model.state_dict(), names, switches, ids, position_ids, VISIBLE == 1, heads=HEADS, depth=DEPTH)


@pytest.mark.parametrize("scheme", [*JOINED, *MORE])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", TWO)
def test_the_function_is_kept(kind: str, attention: str, scheme: str) -> None:
    source = build(kind, attention=attention)
    before = {key: value.clone() for key, value in source.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = convert(source, scheme)
    assert ours is not source
    assert source.state_dict().keys() == before.keys()
    assert type(source) is getattr(transformers, f"{kind}Model")
    for visible in (None, VISIBLE):
        assert relative(tokens(ours, visible=visible), tokens(source, visible=visible)) <= 1e-6
    assert ours.plan == PositionScheme.parse(scheme).plan(DEPTH)
    assert ours.scheme == PositionScheme.parse(scheme)


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_keeps_its_function_and_follows_the_equations(kind: str) -> None:
    """RoBERTa and its like number real tokens from the row after that of padding."""
    source = build(kind)
    assert relative(tokens(convert(source)), tokens(source)) <= 1e-6
    rows = torch.arange(LENGTH)[None]
    if "Bert" not in kind and kind != "Electra":
        rows = torch.where(VISIBLE == 1, VISIBLE.cumsum(1) + PAD, PAD)
    ours = converted(kind)
    reference = expected(kind, ours, switches_of("mpvg"), position_ids=rows)[-1]
    assert relative(tokens(ours)[VISIBLE == 1], reference[VISIBLE == 1]) <= 1e-5
    assert relative(tokens(ours.double())[VISIBLE == 1], reference[VISIBLE == 1]) <= 1e-12
    words = IDS.masked_fill(IDS == PAD, 2)  # embeddings cannot tell padding, and RoBERTa then numbers all tokens
    assert relative(tokens(ours, None, inputs_embeds=ours.get_input_embeddings()(words)), tokens(ours, words)) <= 1e-12


@pytest.mark.parametrize("kind", TWO)
def test_the_equations(kind: str) -> None:
    """In float64, under every scheme, each hidden state; and not under another scheme's."""
    for scheme in (*SCHEMES, *MORE):
        for preserve in (True, False):
            ours = converted(kind, scheme, preserve=preserve).double()
            with torch.no_grad():
                states = ours(IDS, attention_mask=VISIBLE, output_hidden_states=True).hidden_states
            for state, reference in zip(states, expected(kind, ours, switches_of(scheme)), strict=True):
                assert relative(state, reference) <= 1e-12, scheme
    for scheme, inverted in (
        ("mpvg", {"hierarchical": False}),
        ("mpvg", {"join_input": False}),
        ("mpvg", {"last_norm": None}),
        ("mpvg", {"last_norm": 2}),
        ("mpvg:last_norm=2", {"last_norm": 0}),
        ("mpvg:first_block=true", {"first_block": False}),
        ("lape", {"join_input": True}),
        ("mpvg:hierarchical=false", {"hierarchical": True}),
    ):
        ours = converted(kind, scheme).double()
        wrong = replace(switches_of(scheme), **inverted)  # type: ignore[arg-type]
        assert relative(tokens(ours), expected(kind, ours, wrong)[-1]) > 1e-3, (scheme, inverted)


@pytest.mark.parametrize("kind", TWO)
@pytest.mark.parametrize("scheme", ["mpvg", "lape_gap", "gap_last", "mpvg:hierarchical=false"])
def test_everything_learns(kind: str, scheme: str) -> None:
    source = build(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert(source, scheme).train()
    new = {key: value for key, value in model.named_parameters() if key not in source.state_dict()}
    assert len(new) == 3 * sum(map(bool, model.plan.blocks)) + 2 * (model.plan.last is not None)
    optimiser, start = torch.optim.SGD(model.parameters(), lr=0.1), tokens(model)
    for step in range(2):
        optimiser.zero_grad()
        model(IDS, attention_mask=VISIBLE)[0][:, 0].square().sum().backward()
        for key, value in new.items():
            assert value.grad is not None
            assert value.grad.isfinite().all(), key
            shut = step == 0 and "norm_pos" in key and "layer" in key
            assert value.grad.abs().max() > 0 or shut, (step, key)
        optimiser.step()
    assert relative(tokens(model), start) > 1e-4


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "Roberta"])
def test_padding_is_not_seen(kind: str) -> None:
    ours, others = converted(kind), torch.where(VISIBLE == 1, IDS, 7)
    rows = torch.arange(2, LENGTH + 2).expand(2, -1)
    first, second = (tokens(ours, ids, position_ids=rows)[VISIBLE == 1] for ids in (IDS, others))
    assert relative(first, second) <= 1e-6
    assert relative(tokens(ours, position_ids=rows, visible=None), tokens(ours, others, None, position_ids=rows)) > 1e-3


def test_the_row_of_padding_stays_as_it_is() -> None:
    """As in transformers, where RoBERTa's padding row gets no gradient: neither for one row of ids nor for several."""
    for ids in (IDS, IDS[1:]):
        ours = converted("Roberta")
        ours(ids)[0].square().sum().backward()
        grad = ours.embeddings.position_embeddings.weight.grad
        assert (grad[PAD] == 0).all()
        assert (grad[PAD + 1 : PAD + 7] != 0).any(dim=1).all()


@pytest.mark.parametrize("kind", TWO)
def test_the_arguments_of_transformers(kind: str) -> None:
    ours = converted(kind).double()
    rows = torch.stack([torch.arange(LENGTH).flip(0), torch.arange(3, LENGTH + 3)])
    reference = expected(kind, ours, switches_of("mpvg"), position_ids=rows)[-1]
    assert relative(tokens(ours, position_ids=rows), reference) <= 1e-12
    one = tokens(ours, position_ids=rows[:1])
    assert relative(one[0], reference[0]) <= 1e-12
    assert relative(one[1], reference[1]) > 1e-3
    embeds = ours.get_input_embeddings()(IDS)
    assert relative(tokens(ours, None, inputs_embeds=embeds), tokens(ours)) <= 1e-12
    with torch.no_grad():
        assert isinstance(ours(IDS, return_dict=False), tuple)
        eager = converted(kind, attention="eager").double()
        output = eager(IDS, attention_mask=VISIBLE, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == DEPTH + 1
    assert [part.shape for part in output.attentions] == [(2, HEADS, LENGTH, LENGTH)] * DEPTH
    assert relative(output.last_hidden_state, tokens(ours)) <= 1e-12
    for wrong in ({}, {"input_ids": IDS, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            ours(**wrong)


@pytest.mark.parametrize("kind", [*TWO, "Roberta"])
@pytest.mark.parametrize("scheme", ["mpvg", "lape", "default"])
def test_positions_and_folding(kind: str, scheme: str) -> None:
    ours = converted(kind, scheme)
    folded = fold(ours)
    assert not [key for key in folded.state_dict() if "norm_pos" in key or "ls_pos" in key]
    assert [key for key in ours.state_dict() if "norm_pos" in key] or scheme == "default"
    rows = torch.arange(2, LENGTH + 2).expand(2, -1)
    for arguments in ({}, {"position_ids": rows}, {"position_ids": rows[:1]}):
        assert relative(tokens(folded, **arguments), tokens(ours, **arguments)) <= 1e-6
    for model in (ours, folded):
        for length, rows_given in ((None, ROWS), (5, 5)):
            initial, blocks, last = model.positions(length)
            assert all(t.shape == (1, rows_given, WIDTH) for t in (initial, *blocks, last) if t is not None)
            assert [t is not None for t in blocks] == [source is not None for source in ours.plan.blocks]
            assert (last is None) == (ours.plan.last is None)
        with pytest.raises(ValueError, match=rf"length=21.*{ROWS} rows"):
            model.positions(21)
    for mine, stored in zip(ours.positions(5).blocks, folded.positions(5).blocks, strict=True):
        assert mine is stored or torch.allclose(mine, stored, atol=1e-6)
    assert relative(tokens(fold(folded)), tokens(ours)) <= 1e-6
    with pytest.raises(ValueError, match=r"img_size=224.*reads text"):
        fold(ours, 224)


@pytest.mark.parametrize("kind", TWO)
@pytest.mark.parametrize("make", [converted, lambda kind: fold(converted(kind))], ids=["unfolded", "folded"])
def test_copies_are_independent(kind: str, make: Callable[[str], Any]) -> None:
    ours = make(kind)
    stream = io.BytesIO()
    torch.save(ours, stream)
    stream.seek(0)
    before = tokens(ours)
    for other in (copy.deepcopy(ours), torch.load(stream, weights_only=False)):
        assert type(other) is type(ours)
        assert torch.equal(tokens(other), before)
        with torch.no_grad():
            for value in other.state_dict().values():
                value.zero_()
        assert torch.equal(tokens(ours), before)
        assert not torch.equal(tokens(other), before)
        other.load_state_dict(ours.state_dict())
        assert torch.equal(tokens(other), before)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", TWO)
def test_checkpointing_two_lengths_before_one_backward(kind: str, reentrant: bool) -> None:
    grads = []
    for checkpointing in (False, True):
        model = converted(kind).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        loss = sum(model(ids)[0].square().mean() for ids in (IDS, IDS[:, :5]))
        loss.backward()  # type: ignore[union-attr]
        grads.append({key: value.grad for key, value in model.named_parameters()})
    assert len([key for key, value in grads[0].items() if "pos" in key and value is not None]) == 1 + 3 * 3 + 2
    for key, value in grads[0].items():
        assert (value is None) == (grads[1][key] is None)
        assert value is None or torch.allclose(value, grads[1][key], rtol=1e-5, atol=1e-7), key


def test_compiled_exported_and_in_bfloat16() -> None:
    ours = converted("Bert")
    before = tokens(ours)
    assert relative(tokens(torch.compile(ours, backend="aot_eager")), before) <= 1e-6
    exported = torch.export.export(ours, (IDS, VISIBLE)).module()
    assert relative(exported(IDS, VISIBLE)[0], before) <= 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert relative(tokens(ours), before) <= 0.1
    assert tokens(ours.bfloat16()).dtype == torch.bfloat16
