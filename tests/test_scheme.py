"""Schemes: presets, canonical form, text, and an error for everything that means nothing."""

from __future__ import annotations

from typing import Any

import pytest

from mpvg import SCHEMES, PositionScheme

TABLE = {  # method: class token, join, layer-wise, hierarchical, first block, Last LN
    "default": (True, True, False, False, False, None),
    "gap": (False, True, False, False, False, None),
    "gap_last": (False, True, False, False, False, 0),
    "lape": (True, False, True, True, True, None),
    "lape_gap": (False, False, True, True, True, None),
    "pvg": (False, True, True, True, None, None),
    "pvg_cls": (True, True, True, True, None, None),
    "mpvg": (False, True, True, True, None, 0),
}


def test_presets_are_the_table() -> None:
    actual = {
        name: (s.class_token, s.join_input, s.layerwise, s.hierarchical, s.first_block, s.last_norm)
        for name, s in SCHEMES.items()
    }
    assert actual == TABLE
    assert PositionScheme() == SCHEMES["mpvg"]


def test_parse_reads_names_text_mappings_and_schemes() -> None:
    expected = PositionScheme(last_norm=5, first_block=True)
    assert PositionScheme.parse("mpvg:last_norm=5,first_block=true") == expected
    assert PositionScheme.parse("mpvg: last_norm=5, first_block=True") == expected
    assert PositionScheme.parse({"base": "mpvg", "last_norm": 5, "first_block": True}) == expected
    assert PositionScheme.parse({"last_norm": 5, "first_block": True}) == expected
    assert PositionScheme.parse(expected) is expected
    assert PositionScheme.parse("lape:last_norm=none,class_token=false") == SCHEMES["lape_gap"]


def test_canonical_form() -> None:
    scheme = PositionScheme(layerwise=False, hierarchical=True, first_block=True)
    assert (scheme.hierarchical, scheme.first_block) == (False, False)
    assert scheme == SCHEMES["gap_last"]
    assert hash(scheme) == hash(SCHEMES["gap_last"])


@pytest.mark.parametrize("name", SCHEMES)
def test_text_reads_back(name: str) -> None:
    assert str(SCHEMES[name]) == name
    assert PositionScheme.parse(str(SCHEMES[name])) == SCHEMES[name]


def test_class_token_with_the_last_norm_must_be_asked_for() -> None:
    for explicit in (PositionScheme(class_token=True, last_norm=0), PositionScheme.parse("pvg_cls:last_norm=0")):
        assert (explicit.class_token, explicit.last_norm) == (True, 0)
    for implicit in ({"class_token": True}, {"base": "gap_last", "class_token": True}):
        with pytest.raises(ValueError, match=r"class_token=True.*last_norm=None"):
            PositionScheme.parse(implicit)
    with pytest.raises(ValueError, match="class_token=True"):
        PositionScheme(class_token=True)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("mpgv", r"'mpgv'.*did you mean 'mpvg'"),
        ("mpvg:last_nrom=5", r"'last_nrom'.*did you mean 'last_norm'"),
        ("mpvg:last_norm", r"'last_norm'.*field=value"),
        ("mpvg:", r"field=value"),
        ("mpvg:last_norm=1,last_norm=2", r"'last_norm' twice"),
        ("mpvg:last_norm=" + "9" * 5000, r"field=value"),
        ("mpvg:last_norm=five", r"'last_norm=five'"),
        ("mpvg:last_norm=-1", r"last_norm=-1"),
        ("mpvg:join_input=2", r"join_input=2.*True or False"),
        ({"base": "mpvg", "last_norm": True}, r"last_norm=True"),
        ({"base": "mpvg", "last_norm": 1.0}, r"last_norm=1.0"),
        ({"base": "mpvg", "layerwise": None}, r"layerwise=None"),
        ({"base": ["mpvg"]}, r"\['mpvg'\]"),
        ("gap:last_norm=3", r"last_norm=3.*layerwise=False"),
        (7, r"scheme=7"),
        (None, r"scheme=None"),
    ],
)
def test_bad_schemes_name_the_value(scheme: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PositionScheme.parse(scheme)


def test_plan_says_what_each_block_reads() -> None:
    assert PositionScheme.parse("mpvg").plan(4).blocks == (None, "initial", "previous", "previous")
    assert PositionScheme.parse("mpvg").plan(4, first_block=True).blocks == ("initial",) + ("previous",) * 3
    assert PositionScheme.parse("mpvg:first_block=false").plan(3, first_block=True).blocks[0] is None
    assert PositionScheme.parse("mpvg:hierarchical=false").plan(3).blocks == (None, "initial", "initial")
    assert PositionScheme.parse("gap").plan(2) == (True, (None, None), None)
    assert not PositionScheme.parse("gap:join_input=false").plan(2).uses_positions


@pytest.mark.parametrize(
    ("scheme", "depth", "message"),
    [
        ("mpvg:last_norm=4", 4, r"last_norm=4.*depth=4.*below 4"),
        ("mpvg", 1, r"depth=1.*first_block=True"),
    ],
)
def test_plan_refuses_what_the_depth_does_not_have(scheme: str, depth: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PositionScheme.parse(scheme).plan(depth)
