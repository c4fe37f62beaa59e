"""Write the tables of docs/results.md and README.md from results/*.csv: python docs/results_tables.py

The paper's figures are in results/paper.csv; ours come from benchmarks/reproduce_cifar100.py and
benchmarks/reproduce_fashion_mnist.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from analysis_tables import interval
from mpvg.stats import paired_difference, student_interval, verdict
from tables import DOCS, RESULTS, Row, Tables, number, rows, table, write

DOCUMENT, README = DOCS / "results.md", DOCS.parent / "README.md"
PAPER, CIFAR, FASHION = (RESULTS / f"{name}.csv" for name in ("paper", "cifar100_vit_lite", "fashion_mnist_vit_nano"))
RECIPES = {
    ("ImageNet-1k", "DeiT-Ti"): "imagenet1k/deit_tiny",
    ("ImageNet-1k", "DeiT-S"): "imagenet1k/deit_small",
    ("ImageNet-1k", "DeiT-B"): "imagenet1k/deit_base",
    ("ImageNet-1k", "Swin-Ti"): "imagenet1k/swin_tiny",
    ("ImageNet-1k", "CeiT-Ti"): "imagenet1k/ceit_tiny",
    ("ImageNet-1k", "T2T-ViT-7"): "imagenet1k/t2t_vit_7",
    ("CIFAR-100", "ViT-Lite-7/4"): "cifar100/vit_lite_7_4",
    ("CIFAR-100", "T2T-ViT-7, fine-tuned"): "cifar100/t2t_vit_7_finetune",
}
_REFERENCE, _CONTROL = "default", "pvg, bias at 2 x rate"
_SHARED = ("epochs", "steps", "recipe_hash")  # or more than seeds would tell runs apart
_ORDER = ("default", "gap", "lape", "lape_gap", "pvg", "mpvg", _CONTROL)
Runs = Mapping[str, Mapping[str, Row]]  # of each scheme, the row of each seed


def runs(found: Sequence[Row]) -> Runs:
    """Return rows by scheme, a control as one of its own, and by seed.

    Raises:
        ValueError: Two rows of a scheme and seed, or rows of several studies.
    """
    by_scheme: dict[str, dict[str, Row]] = {}
    for row in found:
        factor = float(row["last_norm_bias_lr"])
        label = row["scheme"] if factor == 1 else f"{row['scheme']}, bias at {factor:g} x rate"
        if by_scheme.setdefault(label, {}).setdefault(row["seed"], row) is not row:
            raise ValueError(f"{label}, seed {row['seed']}: two rows; leave the one that counts.")
    for name in _SHARED:
        values = sorted({row.get(name, "") for row in found})
        if len(values) > 1:
            raise ValueError(f"{name}={values}: rows of one study share it; leave those that count.")
    order = [*(scheme for scheme in _ORDER if scheme in by_scheme), *sorted(by_scheme.keys() - {*_ORDER})]
    return {scheme: by_scheme[scheme] for scheme in order}


def accuracies(seeds: Mapping[str, Row]) -> list[float]:
    return [100 * float(row["accuracy"]) for row in seeds.values()]


def difference(found: Runs, one: str, other: str) -> list[str]:
    """Return the difference of two schemes over the seeds that both have, and what it shows."""
    shared = [seed for seed in found.get(one, {}) if seed in found.get(other, {})]
    if not shared:
        return ["", "no seed in common"]
    values, others = (accuracies({seed: found[scheme][seed] for seed in shared}) for scheme in (one, other))
    paired = paired_difference(values, others)
    return [interval(paired, "+.2f"), verdict(paired, f"`{other}`")]


def _ours(recipe: str) -> Runs:
    """Return our runs of one of the recipes of the paper's tables."""
    return runs([row for row in rows(CIFAR) if row["recipe"] == f"recipes/{recipe}.yaml"])


def reproduced() -> str:
    """Return the paper's figures beside ours, where a recipe of the paper was run."""
    body = []
    for printed in rows(PAPER):
        recipe = RECIPES.get((printed["task"], printed["architecture"]))
        seeds = _ours(recipe).get(printed["scheme"]) if recipe else None
        if seeds:
            body.append(beside_paper(printed, seeds))
    if not body:
        return "None yet: no run of a recipe of the paper has been finished."
    header = ["architecture, task", "scheme", "paper", "ours (95 %)", "ours minus paper", "seeds", "hours a run", "on"]
    return table(header, body)


def beside_paper(printed: Row, seeds: Mapping[str, Row]) -> list[str]:
    """Return one of the paper's figures beside our runs of it."""
    ours = student_interval(accuracies(seeds))
    hours = sum(float(row["hours"]) for row in seeds.values()) / len(seeds)
    return [
        f"{printed['architecture']}, {printed['task']}",
        f"`{printed['scheme']}`",
        printed["figure"],
        interval(ours, ".2f"),
        number(ours.mean - float(printed["figure"]), "+.2f"),
        str(len(seeds)),
        f"{hours:.2f}",
        ", ".join(sorted({row["hardware"] for row in seeds.values()})),
    ]


def not_run() -> str:
    """Return the paper's figures that nothing stands beside, and why."""
    by_task: dict[tuple[str, str, str], list[str]] = {}
    for printed in rows(PAPER):
        recipe = RECIPES.get((printed["task"], printed["architecture"]))
        if recipe is None or printed["scheme"] not in _ours(recipe):
            key = (printed["table"], printed["task"], printed["architecture"])
            by_task.setdefault(key, []).append(f"`{printed['scheme']}` {printed['figure']}")
    body = [
        [where, f"{architecture}, {task}", ", ".join(figures), _why(task, RECIPES.get((task, architecture)))]
        for (where, task, architecture), figures in by_task.items()
    ]
    return table(["the paper's table", "architecture, task", "its figures", "why nothing stands beside them"], body)


def _why(task: str, recipe: str | None) -> str:
    if recipe is None:
        settings = _dense_recipe(task)["trainer"]
        length = f"{settings['max_steps']:,} steps" if "max_steps" in settings else f"{settings['max_epochs']} epochs"
        return f"{length} of images that were not at hand, nor was a GPU"
    header = (DOCS.parent / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    flops = re.search(r"([\d.]+) x 10\^18 FLOPs", header)
    assert flops is not None
    hours = float(flops[1]) * 1e18 / 1e13 / 3600
    return f"{flops[1]} x 10^18 FLOPs a run, {hours:,.1f} hours at 10 TFLOP/s: no GPU was at hand"


def _dense_recipe(task: str) -> dict[str, Any]:
    (path,) = (DOCS.parent / "recipes" / ("ade20k" if task.startswith("ADE20K") else "coco")).glob("*.yaml")
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def study(found: Runs) -> str:
    """Return our runs of a small model: accuracy, difference to the default, rate, hours."""
    body = []
    for scheme, seeds in found.items():
        beside = ["", "reference"] if scheme == _REFERENCE else difference(found, scheme, _REFERENCE)
        body.append(
            [
                f"`{scheme}`",
                interval(student_interval(accuracies(seeds)), ".2f"),
                *beside,
                ", ".join(sorted({_rate(row) for row in seeds.values()})),
                str(len(seeds)),
                f"{sum(float(row['hours']) for row in seeds.values()):.2f}",
            ]
        )
    header = ["scheme", "test accuracy, % (95 %)", "minus `default`, points (95 %)", "", "peak rate", "seeds", "hours"]
    return table(header, body)


def _rate(row: Row) -> str:
    """Return the learning rate of a run; where it was chosen among several, whether it lies at their edge."""
    rate, tried = float(row["lr"]), [float(word) for word in row.get("lr_tried", "").split()]
    edge = {min(tried): ", the lowest tried", max(tried): ", the highest tried"}.get(rate, "") if tried else ""
    return f"{rate:g}{edge}"


def small_cifar() -> Runs:
    return runs([row for row in rows(CIFAR) if row["recipe"].startswith("benchmarks/")])


def fashion() -> Runs:
    return runs(rows(FASHION))


def setting(found: Runs) -> str:
    """Return what all runs of a study had in common, in a sentence."""
    every = [row for seeds in found.values() for row in seeds.values()]
    hours = sum(float(row["hours"]) for row in every)
    hardware = ", ".join(sorted({row["hardware"] for row in every}))
    versions = ", ".join(sorted({f"mpvg {row['mpvg']}, torch {row['torch']}, timm {row['timm']}" for row in every}))
    first = every[0]
    return (
        f"{len(every)} runs of {first['epochs']} epochs ({first['steps']} steps), {hours:.1f} hours of runs in all; "
        f"{hardware}; {versions}."
    )


def control() -> str:
    """Return the control of MPVG beside it and beside PVG."""
    pairs = (("mpvg", "pvg"), (_CONTROL, "pvg"), ("mpvg", _CONTROL))
    body = [
        [name, f"`{one}` minus `{other}`", *difference(found, one, other)]
        for name, found in (("CIFAR-100", small_cifar()), ("Fashion-MNIST", fashion()))
        for one, other in pairs
    ]
    return table(["images", "difference", "points (95 %)", "so the first is"], body)


def in_short() -> str:
    """Return the two studies of small models in one table, for the README."""
    of_cifar, of_fashion = small_cifar(), fashion()
    body = []
    for scheme in _ORDER:
        cells = []
        for found in (of_cifar, of_fashion):
            beside = ["", ""] if scheme == _REFERENCE else difference(found, scheme, _REFERENCE)
            ours = interval(student_interval(accuracies(found[scheme])), ".2f") if scheme in found else "not run"
            cells += [ours, beside[1]]
        body.append([f"`{scheme}`", *cells])
    seeds = [len(found[_REFERENCE]) for found in (of_cifar, of_fashion)]
    names = (
        f"{name}, {count} seeds, % (95 %)" for name, count in zip(("CIFAR-100", "Fashion-MNIST"), seeds, strict=True)
    )
    header = [cell for name in names for cell in (name, "beside `default`")]
    return table(["scheme", *header], body)


TABLES: Tables = {
    "reproduced": reproduced,
    "not run": not_run,
    "cifar setting": lambda: setting(small_cifar()),
    "cifar": lambda: study(small_cifar()),
    "fashion setting": lambda: setting(fashion()),
    "fashion": lambda: study(fashion()),
    "control": control,
}
OF_README: Tables = {"results in short": in_short}


if __name__ == "__main__":
    write(DOCUMENT, TABLES)
    write(README, OF_README)
