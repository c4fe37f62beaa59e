"""The models agree with an independent reimplementation, and stop agreeing when anything about it is wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families import FAMILIES, SWIN, T2T, VIT, Family, build, inputs
from helpers import images
from mpvg import PositionScheme
from reference import Switches, run


def names(family: Family) -> str:
    return family.models[0]


each_family = pytest.mark.parametrize("family", FAMILIES, ids=names)
CASES = [
    pytest.param(family, scheme, id=f"{names(family)}-{scheme}") for family in FAMILIES for scheme in family.schemes
]


def ablations(family: Family) -> list[dict[str, Any]]:
    """MPVG, tables 5 and 6, at the family's depth; and what has no name."""
    return [
        *({"base": "mpvg", "last_norm": k} for k in range(1, family.depth)),
        {"base": "mpvg", "first_block": True},
        {"base": "mpvg", "first_block": False},
        {"base": "mpvg", "hierarchical": False},
        {"base": "mpvg", "join_input": False},
        {"base": "gap_last", "join_input": False},
    ]


def switches_of(family: Family, scheme: PositionScheme) -> Switches:
    return Switches(
        scheme.class_token and family.class_tokens,
        scheme.join_input,
        scheme.layerwise,
        scheme.hierarchical,
        family.first_block if scheme.first_block is None else scheme.first_block,
        scheme.last_norm,
    )


def disagreement(
    family: Family,
    scheme: PositionScheme,
    switches: Switches,
    *,
    size: tuple[int, int] | None = None,
    reference: Any = None,
    **changes: Any,
) -> float:
    """Largest relative difference of tokens, logits and gradients between model and reference."""
    if size:
        changes["img_size"] = size
    model = build(family, scheme, dtype=torch.float64, **changes)
    model.requires_grad_(True)  # frozen tables too: what reads them is to be right
    x = inputs(family, size=size, dtype=torch.float64)
    cotangent = images(2, family.shrunken["num_classes"], seed=1, dtype=torch.float64)
    y = model.forward_features(x)
    logits = model(x)
    named = dict(model.named_parameters())
    grads = torch.autograd.grad((logits * cotangent).sum(), list(named.values()), allow_unused=True)

    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for name in named:
        weights[name].requires_grad_()
    for norm in [name.removesuffix(".weight") for name in weights if name.endswith(("norm1.weight", "norm.weight"))]:
        width = len(weights[f"{norm}.weight"])  # what wrong switches ask for
        other = norm.removesuffix("norm1") + "norm_pos" if norm.endswith("norm1") else "norm_pos"
        for seed, part in enumerate(("weight", "bias")):
            weights.setdefault(f"{other}.{part}", images(width, seed=seed, dtype=torch.float64))
    try:
        expected = (reference or family.reference)(weights, x, switches)
    except RuntimeError:
        return float("inf")  # one token more or less than the table has rows
    expected_grads = torch.autograd.grad(
        (expected["logits"] * cotangent).sum(), [weights[name] for name in named], allow_unused=True
    )
    pairs = [(y, expected["y"]), (logits, expected["logits"])]
    for actual, wanted, parameter in zip(grads, expected_grads, named.values(), strict=True):
        pairs.append(tuple(torch.zeros_like(parameter) if grad is None else grad for grad in (actual, wanted)))  # type: ignore[arg-type]
    differences = []
    for actual, wanted in pairs:
        if actual.shape != wanted.shape:
            return float("inf")
        scale = max(wanted.abs().max().item(), 1.0)
        differences.append((actual - wanted).abs().max().item() / scale)
    return max(differences)


@pytest.mark.parametrize(("family", "scheme"), CASES)
def test_presets_equal_the_formulas(family: Family, scheme: str) -> None:
    parsed = PositionScheme.parse(scheme, class_tokens=family.class_tokens)
    assert disagreement(family, parsed, switches_of(family, parsed)) < 1e-10


@each_family
def test_ablations_equal_the_formulas(family: Family) -> None:
    for scheme in ablations(family):
        parsed = PositionScheme.parse(scheme)
        assert disagreement(family, parsed, switches_of(family, parsed)) < 1e-10, scheme


@each_family
@pytest.mark.parametrize("scheme", ["gap", "lape_gap", "mpvg"])
def test_other_shapes_equal_the_formulas(family: Family, scheme: str) -> None:
    parsed = PositionScheme.parse(scheme)
    assert disagreement(family, parsed, switches_of(family, parsed), size=family.wide) < 1e-10
    dynamic = build(family, parsed, dtype=torch.float64, dynamic_img_size=True)
    x = inputs(family, size=family.wide, dtype=torch.float64)
    weights = dynamic.state_dict()
    weights["pos_embed"] = dynamic.positions(dynamic.patch_embed.dynamic_feat_size(family.wide)).initial
    expected = family.reference(weights, x, switches_of(family, parsed))["logits"]
    torch.testing.assert_close(dynamic(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scheme", ["mpvg", "lape", "default"])
def test_registers_have_no_row(scheme: str) -> None:
    parsed = PositionScheme.parse(scheme)
    reference = partial(run, depth=VIT.depth, heads=3, patch=4, registers=2)
    assert disagreement(VIT, parsed, switches_of(VIT, parsed), reference=reference, reg_tokens=2) < 1e-10


@pytest.mark.parametrize("pos_embed", ["learn", "sincos2d"])
def test_a_family_can_have_any_table(pos_embed: str) -> None:
    for family in (T2T, SWIN):
        parsed = PositionScheme.parse("mpvg")
        assert disagreement(family, parsed, switches_of(family, parsed), pos_embed=pos_embed) < 1e-10


@st.composite
def schemes(draw: st.DrawFn, family: Family) -> PositionScheme:
    layerwise = draw(st.booleans())
    last_norms = [None, 0, *range(1, family.depth)] if layerwise else [None, 0]
    scheme = PositionScheme(
        class_token=family.class_tokens and draw(st.booleans()),
        join_input=draw(st.booleans()),
        layerwise=layerwise,
        hierarchical=draw(st.booleans()),
        first_block=draw(st.sampled_from([None, False, True])),
        last_norm=draw(st.sampled_from(last_norms)),
    )
    return scheme if scheme.plan(family.depth).uses_positions else replace(scheme, join_input=True)


@each_family
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_every_combination_equals_the_formulas(family: Family, data: st.DataObject) -> None:
    scheme = data.draw(schemes(family))
    assert disagreement(family, scheme, switches_of(family, scheme)) < 1e-10
    assert PositionScheme.parse(str(scheme)) == scheme


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("default", {"class_token": False}),
    ("mpvg", {"class_token": True}),
    ("mpvg", {"join_input": False}),
    ("lape", {"join_input": True}),
    ("pvg", {"layerwise": False}),
    ("mpvg", {"hierarchical": False}),
    ("lape", {"hierarchical": False}),
    ("lape", {"first_block": False}),
    ("pvg", {"first_block": True}),
    ("mpvg", {"last_norm": None}),
    ("pvg", {"last_norm": 0}),
    ("mpvg", {"last_norm": 2}),
    ("mpvg", {"reverse_chain": True}),
    ("lape", {"reverse_chain": True}),
    ("lape", {"drop_class_row": True}),
    ("default", {"drop_class_row": True}),
    ("pvg_cls", {"drop_class_row": True}),
]


def has_meaning(family: Family, scheme: str, changes: dict[str, Any]) -> bool:
    of_class_token = {
        "class_token",
        "drop_class_row",
        "reverse_chain",
    }  # Swin's chain has one direction, through stages
    return family.class_tokens or not (of_class_token & set(changes) or scheme == "pvg_cls")


@pytest.mark.parametrize(
    ("family", "scheme", "changes"),
    [
        pytest.param(family, scheme, changes, id=f"{names(family)}-{scheme}-{next(iter(changes))}")
        for family in FAMILIES
        for scheme, changes in WRONG
        if has_meaning(family, scheme, changes)
    ],
)
def test_the_comparison_notices_every_error(family: Family, scheme: str, changes: dict[str, Any]) -> None:
    parsed = PositionScheme.parse(scheme, class_tokens=family.class_tokens)
    right = switches_of(family, parsed)
    if changes == {"first_block": True} and right.first_block:
        changes = {"first_block": False}
    assert disagreement(family, parsed, replace(right, **changes)) > 1e-3
