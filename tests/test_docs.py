"""The code in the documents runs, and does what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import analysis_tables
import beyond_images_tables
import cost_tables
import dense_learning_tables
import finetuning_tables
import mpvg
import recipes_tables
import results_tables
from helpers import images, perturb, relative
from mpvg.cli import main
from tables import filled

ROOT = Path(__file__).parents[1]


def code_of(document: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / document).read_text(), re.S))


@pytest.fixture(scope="module")
def extended() -> Any:
    found: dict[str, Any] = {}
    exec(compile(code_of("extending.md"), "extending.md", "exec"), found)
    return found["MyLayerwiseViT"]


SCHEMES = [name for name in mpvg.SCHEMES if name != "pvg_cls"]


@pytest.mark.parametrize("scheme", [*SCHEMES, "mpvg:last_norm=2", "mpvg:hierarchical=false"])
def test_an_extended_model_has_every_scheme(extended: Any, scheme: str) -> None:
    model, x = perturb(extended(scheme=scheme)).eval(), images(2, 3, 32, 32)
    positions = model.positions()
    assert [table is None for table in positions.blocks] == [source is None for source in model.plan.blocks]
    assert (positions.last is None) == (model.scheme.last_norm is None)
    folded = mpvg.fold(model)
    assert not [name for name in folded.state_dict() if "norm_pos" in name]
    assert relative(folded(x), model(x)) <= 1e-6
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_extended_model_computes_the_formula(extended: Any) -> None:
    """By hand: mpvg without its last term is pvg, and its chain is written out."""
    model, x = perturb(extended(scheme="mpvg")).eval(), images(2, 3, 32, 32)
    tokens, pos = model.patch_embed(x) + model.pos_embed, model.pos_embed
    for i, block in enumerate(model.blocks):
        a = block.norm1(tokens)
        if i > 0:
            pos = block.norm_pos(pos)
            a = a + pos
        tokens = tokens + block.attn(a)
        tokens = tokens + block.mlp(block.norm2(tokens))
    y = model.norm(tokens) + model.norm_pos(model.pos_embed)
    assert relative(model(x), model.head(y.mean(dim=1))) < 1e-6
    assert torch.equal(model.positions().blocks[3], pos)


def test_the_example_is_about_twenty_lines() -> None:
    ours = code_of("extending.md").split("class MyLayerwiseViT")[1]
    assert len([line for line in ours.splitlines() if line.strip()]) <= 22


def test_the_table_in_fidelity_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--paper"]) == 0
    text = (ROOT / "docs" / "fidelity.md").read_text()
    (shown,) = re.findall(r"<!-- mpvg models --paper -->\n```\n(.*?)```", text, re.S)
    assert shown == capsys.readouterr().out


@pytest.mark.parametrize(
    "module",
    [
        analysis_tables,
        beyond_images_tables,
        cost_tables,
        dense_learning_tables,
        finetuning_tables,
        recipes_tables,
        results_tables,
    ],
    ids=lambda module: module.DOCUMENT.name,
)
def test_tables_are_what_their_numbers_give(module: Any) -> None:
    document = module.DOCUMENT.read_text(encoding="utf-8")
    assert set(re.findall("<!-- table: (.+?) -->", document)) == set(module.TABLES)
    assert filled(document, module.TABLES) == document


def test_the_results_in_short_are_what_their_numbers_give() -> None:
    document = results_tables.README.read_text(encoding="utf-8")
    assert re.findall("<!-- table: (.+?) -->", document) == list(results_tables.OF_README)
    assert filled(document, results_tables.OF_README) == document


@pytest.mark.parametrize("document", [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target
