"""Layer decay and what is trained: rates and frozen parameters, against what the names of parameters ask for."""

from __future__ import annotations

import csv
import html
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import mpvg.compare.plan
from families import CEIT, DEPTHS, FAMILIES, SWIN, T2T, VIT, Family, build, inputs
from mpvg.checkpoint import load_model
from mpvg.cli import main
from mpvg.compare import training
from mpvg.compare.rates import Job
from mpvg.compare.settings import Settings
from mpvg.data.sources import load_data
from mpvg.errors import UserError
from mpvg.train import module
from mpvg.train import optimizer as optimizers
from mpvg.train.freezing import freeze, set_training_mode
from mpvg.train.optimizer import build_optimizer
from mpvg.train.recipe import Recipe, Schedule
from mpvg.train.steps import take_step
from test_data import save

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
FROZEN = ("positions", "head")


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return save(tmp_path / "set.npz")


def by_name(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Return the optimiser's group of each parameter that it holds."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group for group in optimizer.param_groups for parameter in group["params"]}


def layer(family: Family, name: str) -> int:
    """Return which layer a parameter is of: 0 the stem, 1 the first block, one more than there are blocks the head."""
    if name.startswith(("patch_embed.", "pos_embed", "cls_token", "reg_token")):
        return 0
    if name.startswith("head."):
        return family.depth + 1
    if family is SWIN and (found := re.match(r"layers\.(\d)\.(?:blocks\.(\d)|downsample)\.", name)):
        return 1 + sum(DEPTHS[: int(found[1])]) + int(found[2] or 0)
    if found := re.match(r"blocks\.(\d)\.", name):
        return 1 + int(found[1])
    assert name.startswith(("norm.", "norm_pos.", "lca.")), name
    return family.depth  # timm's rule: what follows the last block goes with it


def trained(family: Family, trains: str, name: str) -> bool:
    if name.startswith("head."):
        return True
    table = name == "lca.pos_embed" or (name == "pos_embed" and family is not T2T)  # its sinusoid is frozen
    return trains == "positions" and (table or re.search(r"(^|\.)(norm_pos|ls_pos)\.", name) is not None)


@every_family
@pytest.mark.parametrize("scheme", ["default", "mpvg:last_norm=2", "lape"])
def test_the_scale_of_each_rate(family: Family, scheme: str) -> None:
    registers: dict[str, Any] = {"reg_tokens": 2} if family is VIT else {}
    model = build(family, scheme, **registers)
    plain = by_name(model, build_optimizer(model, Recipe(lr=0.1)))
    groups = by_name(model, build_optimizer(model, Recipe(lr=0.1, layer_decay=0.5)))
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert groups.keys() == plain.keys() == set(learned)
    for name, group in groups.items():
        assert group["lr_scale"] == 0.5 ** (family.depth + 1 - layer(family, name)), name
        assert group["weight_decay"] == plain[name]["weight_decay"], name


@pytest.mark.parametrize("by", ["compare", "fit"])
def test_the_rate_of_each_step(by: str, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[dict[float, float]] = []

    def watched(*args: Any, **options: Any) -> torch.optim.Optimizer:
        def note(optimizer: Any, *_: Any) -> None:
            applied.append({group["lr_scale"]: group["lr"] for group in optimizer.param_groups})

        optimizer = optimizers.build_optimizer(*args, **options)
        optimizer.register_step_pre_hook(note)
        return optimizer

    if by == "compare":
        monkeypatch.setattr(training, "build_optimizer", watched)
        recipe = Recipe(layer_decay=0.5, schedule=Schedule(warmup_epochs=0.8))
        settings = Settings(data=dataset, model="mpvg_vit_nano", epochs=2, batch_size=8, lrs=(0.01,), recipe=recipe)
        training.train(settings, Job("mpvg", 0, 0.01), load_data(dataset), lambda done, loss: None)
    else:
        monkeypatch.setattr(module, "build_optimizer", watched)
        of_recipe = [
            "--model.recipe.layer_decay=0.5",
            "--model.recipe.schedule.warmup_epochs=0.8",
            "--model.recipe.lr=0.01",
        ]
        of_run = ["--out", str(tmp_path / "out"), "--data.batch_size=8", "--trainer.max_epochs=2"]
        assert main(["fit", "--data", dataset, *of_recipe, *of_run]) == 0
        with next(tmp_path.glob("out/csv/*/metrics.csv")).open(newline="") as file:
            shown = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
        assert shown == pytest.approx([rates[1.0] for rates in applied][2::3])  # logged once an epoch of three steps
    steps, warmup = 6, 2
    assert len(applied) == steps
    for step, rates in enumerate(applied, 1):
        rate = 0.01 * step / warmup if step < warmup else 0.005 * (1 + math.cos(math.pi * step / steps))
        assert rates == pytest.approx({0.5**below: rate * 0.5**below for below in range(8)}), step


@every_family
@pytest.mark.parametrize("trains", FROZEN)
def test_only_what_is_trained_changes(family: Family, trains: str) -> None:
    model, x = build(family, "mpvg", drop_path_rate=0.5), inputs(family)
    recipe = Recipe(lr=0.01, weight_decay=0.0, trains=trains)
    freeze(model, trains)
    optimizer = build_optimizer(model, recipe)
    assert set(by_name(model, optimizer)) == {
        name for name, _ in model.named_parameters() if trained(family, trains, name)
    }
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        take_step(model, optimizer, (x,), torch.tensor([0, 1]), recipe)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != trained(family, trains, name), name
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == trained(family, trains, name), name


def test_frozen_blocks_have_no_graph() -> None:
    model = build(VIT, "mpvg")
    for trains, graph in (("all", True), ("head", False)):
        freeze(model, trains)
        assert model.forward_features(inputs(VIT)).requires_grad == graph


@every_family
def test_frozen_models_run_as_they_are_tested(family: Family) -> None:
    model, x = build(family, "mpvg", drop_path_rate=0.5, drop_rate=0.5), inputs(family)
    with torch.no_grad():
        tested = model(x)
        for trains in FROZEN:
            model.train()
            set_training_mode(model, trains)
            assert torch.equal(model(x), tested)
        set_training_mode(model, "all")
        assert not torch.equal(model(x), model(x))


def test_batch_norms_stay_frozen_between_validations(dataset: str, tmp_path: Path) -> None:
    words = ["--model.name", CEIT.models[0], "--model.recipe.trains", "positions", "--out", str(tmp_path / "out")]
    small = [f"--model.arguments.{name}={CEIT.shrunken[name]}" for name in ("embed_dim", "depth", "num_heads")]
    often = ["--data.batch_size=8", "--trainer.max_epochs=2", "--trainer.val_check_interval=1"]
    assert main(["fit", "--data", dataset, "--img-size", "32", *words, *small, *often]) == 0
    card, model = load_model(tmp_path / "out" / "last.ckpt")
    torch.manual_seed(0)
    start = card.build().state_dict()
    assert any(name.endswith("running_var") for name in start)
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, start[name])}
    assert kept == {name for name in start if not trained(CEIT, "positions", name)}


@pytest.mark.parametrize(
    ("arguments", "scheme"),
    [({}, "default"), ({"pos_embed": "none"}, "gap:join_input=false"), ({"pos_embed": "sincos2d"}, "gap")],
)
def test_no_positions_to_train(arguments: dict[str, Any], scheme: str) -> None:
    family = VIT if arguments else T2T
    model = timm.create_model(family.models[0], scheme=scheme, **family.shrunken, **arguments)
    with pytest.raises(UserError, match=f"trains 'positions': scheme '{scheme}' leaves this model none to train"):
        freeze(model, "positions")
    freeze(timm.create_model(family.models[0], scheme="mpvg", **family.shrunken), "positions")


def test_options_of_compare(dataset: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    fixed = ["compare", "--data", dataset, "--out", str(out), "--schemes", "mpvg", "--seeds", "1", "--epochs", "1"]
    options = ["--layer-decay", "0.75", "--trains", "positions"]
    timed = []

    def spy(model: Any, optimizer: Any, images: Any, labels: Any, recipe: Recipe) -> float:
        assert not model.blocks[0].norm1.weight.requires_grad
        timed.append((recipe.layer_decay, recipe.trains))
        return take_step(model, optimizer, images, labels, recipe)

    monkeypatch.setattr(mpvg.compare.plan, "take_step", spy)
    assert main([*fixed, *options, "--dry-run"]) == 0
    assert set(timed) == {(0.75, "positions")}

    def page() -> str:
        return " ".join(html.unescape(re.sub("<[^>]+>", " ", (out / "report.html").read_text())).split())

    assert main([*fixed, *options]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert "--layer-decay 0.75 --trains positions" in summary["command"]
    assert (summary["settings"]["layer_decay"], summary["settings"]["trains"]) == (0.75, "positions")
    assert {note.split(":")[0] for note in summary["notes"]} >= {
        "Only positions and the classifier were trained",
        "Learning rates fall towards the input",
    }
    assert "layer_decay 0.75 trains positions" in page()
    with (out / "results.csv").open(newline="") as file:
        assert [(row["layer_decay"], row["trains"]) for row in csv.DictReader(file)] == [("0.75", "positions")]
    capsys.readouterr()
    assert main(fixed) == 2
    assert "layer_decay 0.75 there, None here; trains 'positions' there, 'all' here" in capsys.readouterr().err
    assert main([*fixed, "--overwrite"]) == 0
    assert "trains" not in page()
    assert "layer_decay" not in page()
    assert "--trains" not in json.loads((out / "summary.json").read_text())["command"]
