"""Which of timm's architectures convert, counted on the meta device; and that docs/coverage.md says so."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import timm

import coverage_tables
from conversion import KINDS, build
from coverage_kinds import kind_of, kinds, skeletons
from mpvg import SCHEMES, convert
from mpvg.models.architectures import timm_architectures
from tables import filled, rows

NEWEST = timm.__version__ == "1.0.31"  # of which the document and the totals tell
REFUSED = (
    "VisionTransformerDistilled",  # distilled heads
    "ParallelThingsBlock",  # parallel
    "ParallelScalingBlock",
    "DiffParallelScalingBlock",
    "ResPostBlock",  # post-norm with residual scale
)


def refusals(models: Mapping[str, Any], scheme: str) -> dict[str, str]:
    """Return what convert says of the models that it refuses; any other exception is none of these."""
    said = {}
    for name, model in models.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                convert(model, scheme, allow_readout_change=True)
            except ValueError as error:
                said[name] = str(error)
    return said


def shape(model: Any) -> str:
    """Return the class that a model is refused for; nothing where its parts are timm's plain ones."""
    return next((name for part in model.modules() if (name := type(part).__name__) in REFUSED), "")


def check(models: Mapping[str, Any], scheme: str) -> dict[str, str]:
    """See that blocks of another shape are refused, by name, and nothing else is."""
    said = refusals(models, scheme)
    for name, model in models.items():
        if name.startswith("swin") and scheme == "pvg_cls":
            assert "has class_token=True" in said.pop(name)
        else:
            assert (name in said) == bool(shape(model)), name
            assert shape(model) in said.get(name, "")
    return said


def test_only_blocks_of_another_shape_are_refused() -> None:
    models = skeletons()
    said = check(models, "mpvg")
    assert len(models) - len(said) >= 200 or not NEWEST
    if NEWEST:
        assert (len(models), len(said)) == (215, 12)
        assert Counter(shape(models[name]) for name in said) == {
            "VisionTransformerDistilled": 4, "ParallelScalingBlock": 4, "ParallelThingsBlock": 2,
            "DiffParallelScalingBlock": 1, "ResPostBlock": 1,
        }  # fmt: skip


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "mpvg"])
def test_every_kind_converts_to_every_scheme(scheme: str) -> None:
    converted, refused = kinds()
    check({names[0]: skeletons()[names[0]] for names in (*converted.values(), *refused.values())}, scheme)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_at_full_depth(scheme: str) -> None:
    said = check({name: timm.create_model(name, device="meta") for name in timm_architectures()}, scheme)
    assert len(said) == 12 or not NEWEST


@pytest.mark.skipif(not NEWEST, reason="the kinds are those of timm 1.0.31")
def test_a_small_model_stands_for_every_kind() -> None:
    assert {kind_of(skeletons()[name]) for name in KINDS} == set(kinds()[0])
    for name in KINDS:
        assert kind_of(build(name, device="meta")) == kind_of(skeletons()[name])


@pytest.mark.skipif(not NEWEST, reason="the document is of timm 1.0.31")
def test_the_document_says_what_is_counted() -> None:
    document = coverage_tables.DOCUMENT.read_text(encoding="utf-8")
    assert set(re.findall("<!-- table: (.+?) -->", document)) == set(coverage_tables.TABLES)
    assert filled(document, coverage_tables.TABLES) == document


def test_agreement_was_measured_of_every_architecture() -> None:
    measured = rows(coverage_tables.AGREEMENT)
    assert {row["timm"] for row in measured} == {"1.0.31"}
    assert all(float(row["difference"]) <= 1e-6 for row in measured)  # which NaN is not
    names = {row["architecture"] for row in measured}
    assert len(names) == 203
    assert names == {name for group in kinds()[0].values() for name in group} or not NEWEST
    assert min(Counter(row["architecture"] for row in measured).values()) >= 2
