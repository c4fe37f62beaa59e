"""The models agree with an independent reimplementation, and stop agreeing when anything about it is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import SMALL, images, small
from mpvg import SCHEMES, PositionScheme
from reference import Switches, run

DEPTH = SMALL["depth"]
ABLATIONS = [  # MPVG, tables 5 and 6, at this depth
    *({"base": "mpvg", "last_norm": k} for k in range(1, DEPTH)),
    {"base": "mpvg", "first_block": True},
    {"base": "mpvg", "hierarchical": False},
    {"base": "mpvg", "join_input": False},
]


def switches_of(scheme: PositionScheme) -> Switches:
    return Switches(
        scheme.class_token,
        scheme.join_input,
        scheme.layerwise,
        scheme.hierarchical,
        bool(scheme.first_block),  # DeiT leaves block 0 out
        scheme.last_norm,
    )


def disagreement(scheme: PositionScheme, switches: Switches, *, registers: int = 0) -> float:
    """Largest relative difference of tokens, logits and gradients between model and reference."""
    model = small(scheme, dtype=torch.float64, reg_tokens=registers)
    x = images(2, SMALL["in_chans"], 16, 16, dtype=torch.float64)
    cotangent = images(2, SMALL["num_classes"], seed=1, dtype=torch.float64)
    y = model.forward_features(x)
    logits = model(x)
    names = [name for name, _ in model.named_parameters()]
    grads = torch.autograd.grad((logits * cotangent).sum(), list(model.parameters()))

    weights = {name: value.detach().clone().requires_grad_() for name, value in model.state_dict().items()}
    for norm in ["norm_pos", *(f"blocks.{block}.norm_pos" for block in range(DEPTH))]:  # what wrong switches ask for
        for seed, part in enumerate(("weight", "bias")):
            weights.setdefault(f"{norm}.{part}", images(SMALL["embed_dim"], seed=seed, dtype=torch.float64))
    try:
        expected = run(weights, x, switches, depth=DEPTH, heads=3, patch=4, registers=registers)
    except RuntimeError:
        return float("inf")  # one token more or less than the table has rows
    expected_grads = torch.autograd.grad(
        (expected["logits"] * cotangent).sum(), [weights[name] for name in names], allow_unused=True
    )
    pairs = [(y, expected["y"]), (logits, expected["logits"])]
    pairs += [(a, torch.zeros_like(a) if b is None else b) for a, b in zip(grads, expected_grads, strict=True)]
    differences = []
    for actual, wanted in pairs:
        if actual.shape != wanted.shape:
            return float("inf")
        scale = max(wanted.abs().max().item(), 1.0)
        differences.append((actual - wanted).abs().max().item() / scale)
    return max(differences)


@pytest.mark.parametrize("scheme", [*SCHEMES, *ABLATIONS], ids=str)
def test_presets_and_ablations_equal_the_formulas(scheme: Any) -> None:
    parsed = PositionScheme.parse(scheme)
    assert disagreement(parsed, switches_of(parsed)) < 1e-10


@pytest.mark.parametrize("scheme", ["mpvg", "lape", "default"])
def test_registers_have_no_row(scheme: str) -> None:
    parsed = PositionScheme.parse(scheme)
    assert disagreement(parsed, switches_of(parsed), registers=2) < 1e-10


@st.composite
def schemes(draw: st.DrawFn) -> PositionScheme:
    layerwise = draw(st.booleans())
    last_norms = [None, 0, *range(1, DEPTH)] if layerwise else [None, 0]
    scheme = PositionScheme(
        class_token=draw(st.booleans()),
        join_input=draw(st.booleans()),
        layerwise=layerwise,
        hierarchical=draw(st.booleans()),
        first_block=draw(st.sampled_from([None, False, True])),
        last_norm=draw(st.sampled_from(last_norms)),
    )
    return scheme if scheme.plan(DEPTH).uses_positions else replace(scheme, join_input=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(schemes())
def test_every_combination_equals_the_formulas(scheme: PositionScheme) -> None:
    assert disagreement(scheme, switches_of(scheme)) < 1e-10
    assert PositionScheme.parse(str(scheme)) == scheme


def _wrong(scheme: str, **changes: Any) -> Any:
    return pytest.param(scheme, changes, id=f"{scheme}-{next(iter(changes))}")


@pytest.mark.parametrize(
    ("scheme", "changes"),
    [
        _wrong("default", class_token=False),
        _wrong("mpvg", class_token=True),
        _wrong("mpvg", join_input=False),
        _wrong("lape", join_input=True),
        _wrong("pvg", layerwise=False),
        _wrong("mpvg", hierarchical=False),
        _wrong("lape", hierarchical=False),
        _wrong("lape", first_block=False),
        _wrong("pvg", first_block=True),
        _wrong("mpvg", last_norm=None),
        _wrong("pvg", last_norm=0),
        _wrong("mpvg", last_norm=2),
        _wrong("mpvg", reverse_chain=True),
        _wrong("lape", reverse_chain=True),
        _wrong("lape", drop_class_row=True),
        _wrong("default", drop_class_row=True),
        _wrong("pvg_cls", drop_class_row=True),
    ],
)
def test_the_comparison_notices_every_error(scheme: str, changes: dict[str, Any]) -> None:
    parsed = PositionScheme.parse(scheme)
    right = switches_of(parsed)
    assert disagreement(parsed, right) < 1e-10
    assert disagreement(parsed, replace(right, **changes)) > 1e-3
