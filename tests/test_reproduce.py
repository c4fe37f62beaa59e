"""The commands behind docs/results.md: order, slices, rows; and what the tables make of rows."""

from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reproduce_cifar100
import results_tables
from mpvg.stats import paired_difference, student_interval
from reproduce_cifar100 import Run, Runner, studies

TINY = """
model:
  name: mpvg_vit_lite_7_4_32
  arguments: {embed_dim: 12, num_heads: 2, depth: 2}
  recipe: {lr: 0.01, augmentation: {mixup: 0.8}}
data: {batch_size: 10, val_fraction: 0.0}
trainer: {max_epochs: 8}
"""


def test_the_paper_comes_first_then_more_seeds_then_the_rest() -> None:
    names = [run.name for run in studies(2)["paper"].runs]
    printed = ["default", "mpvg", "pvg", "lape"]
    assert names[:8] == [f"{scheme}-{seed}" for seed in (0, 1) for scheme in printed]
    assert names[8:] == ["gap-0", "gap-1", "lape_gap-0", "lape_gap-1", "pvg-bias-lr-2-0", "pvg-bias-lr-2-1"]
    small = studies(2)["small"].runs
    assert set(small) == set(studies(2)["paper"].runs)
    assert [run.seed for run in small] == [0] * 7 + [1] * 7


def test_the_hash_is_of_values_not_of_words(tmp_path: Path) -> None:
    study = studies(1)["small"]
    words, other = tmp_path / "words.yaml", tmp_path / "other.yaml"
    text = study.recipe.read_text()
    words.write_text("# other words\n" + text)
    other.write_text(text.replace("lr: 6.0e-3", "lr: 5.0e-3"))
    assert other.read_text() != text
    assert replace(study, recipe=words).hash() == study.hash()
    assert replace(study, recipe=other).hash() != study.hash()
    assert replace(study, options=("--trainer.precision=16-mixed",)).hash() != study.hash()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what a runner of two tiny runs takes."""
    monkeypatch.setattr(reproduce_cifar100, "ROOT", tmp_path)
    recipe, data = tmp_path / "tiny.yaml", tmp_path / "tiny.npz"
    recipe.write_text(TINY)
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = random.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(40) % 4
    np.savez(data, **arrays)
    study = replace(studies(1)["small"], recipe=recipe, runs=(Run("mpvg", 0), Run("pvg", 0, 2.0)))
    shared = {"data": str(data), "at_once": 2, "device": "cpu", "results": tmp_path / "results.csv"}
    return {"study": study, **shared}


def test_bad_data_are_told_once_and_nothing_else_is_tried(
    tiny: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    runner = Runner(**{**tiny, "data": "nowhere.npz", "at_once": 1}, work=tmp_path / "work")
    assert runner.run(until=float("inf")) == 2
    told = capfd.readouterr().out
    assert "mpvg-0: mpvg: " in told
    assert "nowhere.npz" in told
    assert "pvg-bias-lr-2-0: training" not in told
    assert "0 of 2 runs are finished" in told
    assert not tiny["results"].exists()


@pytest.mark.slow
def test_slices_end_in_the_rows_of_an_undisturbed_study(
    tiny: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def rows() -> list[dict[str, str]]:
        with tiny["results"].open(newline="") as file:
            found = sorted(csv.DictReader(file), key=lambda row: row["scheme"])
        return [{k: v for k, v in row.items() if k not in ("hours", "images_per_second")} for row in found]

    (tmp_path / "whole").mkdir()
    started = time.monotonic()
    assert Runner(**tiny, work=tmp_path / "whole").run(until=float("inf")) == 0
    whole = rows()
    assert [(row["scheme"], row["last_norm_bias_lr"], row["epochs"]) for row in whole] == [
        ("mpvg", "1.0", "8"),
        ("pvg", "2.0", "8"),
    ]
    took = time.monotonic() - started
    tiny["results"].unlink()
    (tmp_path / "sliced").mkdir()
    slices = 0
    while not tiny["results"].exists() or len(rows()) < 2:
        until = time.monotonic() + (0.25 + 0.05 * slices) * took
        assert Runner(**tiny, work=tmp_path / "sliced").run(until=until) == 0
        slices += 1
        assert slices < 20
    assert slices > 1
    assert rows() == whole
    again = tiny["results"].read_bytes()
    tiny["results"].unlink()  # the rows are kept with the runs
    assert Runner(**tiny, work=tmp_path / "sliced").run(until=float("inf")) == 0
    assert tiny["results"].read_bytes() == again


def row(scheme: str, seed: int, accuracy: float, *, factor: float = 1.0, recipe: str = "x", **more: Any) -> Any:
    shared = {"hours": "0.5", "hardware": "some GPU", "last_norm_bias_lr": str(factor), "recipe": recipe}
    return {"scheme": scheme, "seed": str(seed), "accuracy": str(accuracy), **shared, **more}


def test_differences_are_paired_by_seed_and_the_control_is_no_scheme() -> None:
    rows = [row("pvg", 1, 0.72), row("pvg", 0, 0.70), row("default", 0, 0.60), row("default", 1, 0.61)]
    rows += [row("pvg", 0, 0.5, factor=2.0), row("pvg", 7, 0.5, factor=2.0), row("mpvg", 9, 0.8)]
    found = results_tables.runs(rows)
    assert list(found) == ["default", "pvg", "mpvg", "pvg, bias at 2 x rate"]
    expected = paired_difference([70.0, 72.0], [60.0, 61.0])
    assert results_tables.difference(found, "pvg", "default")[0] == results_tables.interval(expected, "+.2f")
    assert results_tables.difference(found, "pvg, bias at 2 x rate", "pvg") == [
        "\N{MINUS SIGN}20.00",
        "one seed: no interval",
    ]
    assert results_tables.difference(found, "mpvg", "pvg") == ["", "no seed in common"]


def test_rows_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="pvg, seed 0: two rows"):
        results_tables.runs([row("pvg", 0, 0.7), row("pvg", 0, 0.8)])
    with pytest.raises(ValueError, match="rows of one study share it"):
        results_tables.runs([row("pvg", 0, 0.7, epochs="4"), row("pvg", 1, 0.8, epochs="310")])


def test_a_run_of_a_recipe_stands_beside_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    before = results_tables.not_run()
    assert "ViT-Lite-7/4, CIFAR-100 | `default` 74.90, `lape` 75.52, `pvg` 76.67, `mpvg` 76.87" in before
    read = results_tables.rows
    ours = [row("mpvg", seed, a, recipe="recipes/cifar100/vit_lite_7_4.yaml") for seed, a in ((0, 0.77), (1, 0.78))]
    monkeypatch.setattr(results_tables, "rows", lambda path: ours if path == results_tables.CIFAR else read(path))
    interval = results_tables.interval(student_interval([77.0, 78.0]), ".2f")
    assert (
        f"| ViT-Lite-7/4, CIFAR-100 | `mpvg` | 76.87 | {interval} | +0.63 | 2 | 0.50 | some GPU |"
        in results_tables.reproduced()
    )
    assert "`pvg` 76.67 |" in results_tables.not_run()
