"""The causal test: positions removed or replaced, against models that have them so by construction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from families import CEIT, FAMILIES, SWIN, Family, build, inputs
from helpers import images, relative, small
from mpvg import fold
from mpvg.analysis.interventions import causal_test, changes, delivering


def answers_under(model: Any, change: str, block: int | None, x: Tensor) -> Tensor:
    found = [one for one in changes(model) if (one.block, one.change) == (block, change)]
    assert len(found) == 1
    with delivering(model, found[0].positions), torch.no_grad():
        logits: Tensor = model(x)
    return logits


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
def test_without_all_positions_mpvg_is_the_model_of_gap_last(family: Family) -> None:
    model, x = build(family, "mpvg"), inputs(family)
    plain = build(family, "gap_last")
    left_out = plain.load_state_dict(model.state_dict(), strict=False)
    assert not left_out.missing_keys
    assert {key.split(".")[-2] for key in left_out.unexpected_keys} == {"norm_pos"}
    with torch.no_grad():
        assert relative(answers_under(model, "removed", None, x), plain(x)) < 1e-6
        assert relative(answers_under(model, "removed", None, x), model(x)) > 1e-3


@pytest.mark.parametrize("folded", [False, True])
def test_one_block_receives_what_it_is_told_and_the_others_what_they_did(folded: bool) -> None:
    model, x = small("mpvg"), images(3, 2, 16, 16)
    positions = model.positions()
    asked = fold(model) if folded else model
    for change, given in (("removed", None), ("pos_0", positions.initial), ("d_1", positions.blocks[1])):
        hook = model.blocks[2].register_forward_pre_hook(lambda module, args, given=given: (args[0], given, *args[2:]))
        with torch.no_grad():
            expected = model(x)
        hook.remove()
        assert relative(answers_under(asked, change, 2, x), expected) < 1e-5, change


def test_afterwards_the_model_is_as_it_was() -> None:
    model, x = small("mpvg"), images(2, 2, 16, 16)
    with torch.no_grad():
        before = model(x)
    answers_under(model, "removed", None, x)
    with pytest.raises(KeyError), delivering(model, model.positions()):
        raise KeyError
    with torch.no_grad():
        assert torch.equal(model(x), before)
    assert "positions" not in vars(model)


def test_what_is_tried() -> None:
    def named(model: Any) -> list[tuple[str, str]]:
        return [(one.name, one.change) for one in changes(model)]

    own = [("1", "d_2"), ("2", "d_1"), ("3", "d_2")]
    assert named(small("mpvg")) == [
        (block, change) for block, other in own for change in ("removed", "pos_0", other)
    ] + [("all", "removed")]
    assert named(small("gap_last")) == []
    of_swin = named(build(SWIN, "mpvg"))  # stages of two, one and two blocks; pos_0 fits the first
    assert of_swin == [
        *[("0", "removed"), ("0", "pos_0"), ("0", "d_1"), ("1", "removed"), ("1", "pos_0"), ("1", "d_0")],
        *[("2", "removed"), ("3", "removed"), ("3", "d_4"), ("4", "removed"), ("4", "d_3"), ("all", "removed")],
    ]
    assert ("LCA", "removed") in named(build(CEIT, "mpvg"))


def test_accuracy_and_unchanged_answers_are_counted() -> None:
    model, x = small("mpvg"), images(9, 2, 16, 16)
    with torch.no_grad():
        model.head.bias -= model(x).mean(dim=0)  # so that not all images are of one class
        own = model(x).argmax(dim=1)
    labels = own.clone()
    labels[:3] = (labels[:3] + 1) % 7
    batches = [((x[:5],), labels[:5]), ((x[5:],), labels[5:])]
    told: list[None] = []
    found = causal_test(model, batches, report=lambda: told.append(None))
    assert (found.images, len(told)) == (9, 2 * 11)
    assert found.accuracy == pytest.approx(6 / 9)
    assert {one.change for one in found.interventions if one.block == 2} == {"removed", "pos_0", "d_1"}
    for one in found.interventions:
        changed = answers_under(model, one.change, one.block, x).argmax(dim=1)
        right, right_before = changed == labels, own == labels
        assert one.accuracy == pytest.approx(right.double().mean().item())
        assert one.same_answers == pytest.approx((changed == own).double().mean().item())
        difference = right.double() - right_before.double()
        mean, half = difference.mean().item(), 1.959964 * difference.std().item() / 3
        assert one.difference == pytest.approx((mean, mean - half, mean + half))
    assert any(one.same_answers < 1 for one in found.interventions)


def test_without_labels_only_unchanged_answers_are_counted() -> None:
    found = causal_test(small("mpvg"), [((images(4, 2, 16, 16),), None)])
    assert found.accuracy is None
    for one in found.interventions:
        assert one.accuracy is None
        assert one.difference == (None, None, None)
        assert 0 <= one.same_answers <= 1
