"""Finished runs -> the numbers that the table, summary.json and the report show."""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy
import timm
import torch

import mpvg
from mpvg.compare.settings import Settings
from mpvg.data.sources import ImageData
from mpvg.scheme import PositionScheme
from mpvg.stats import paired_difference, student_interval, verdict

CONVERGED_BELOW = 0.005  # rise of the validation accuracy over the last fifth of the steps

Run = Mapping[str, Any]


def versions() -> dict[str, str]:
    modules = {"mpvg": mpvg, "torch": torch, "timm": timm, "numpy": numpy}
    return {name: module.__version__ for name, module in modules.items()} | {"python": platform.python_version()}


def hardware() -> str:
    """Return the processor's name, its number of cores and the threads that this process computes with."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores; threads a run: {torch.get_num_threads()}"


def describe(scheme: PositionScheme, *, first_block: bool) -> str:
    """Say in one sentence what a scheme does; `first_block` says whether block 0 receives a position in this model."""
    parts = ["positions added at the input" if scheme.join_input else "no positions at the input"]
    if scheme.layerwise:
        where = "every block" if first_block else "every block but the first"
        how = "each from the one before" if scheme.hierarchical else "each from the initial table"
        parts.append(f"delivered to {where}, {how}")
    if scheme.last_norm is not None:
        what = "the initial table" if scheme.last_norm == 0 else f"the position of block {scheme.last_norm}"
        parts.append(f"{what} joins the last norm")
    return f"{'Class token' if scheme.class_token else 'Average pooling'}; {'; '.join(parts)}."


def rise_over_last_fifth(run: Run) -> float:
    """Return how much the validation accuracy rose between four fifths of the steps and the end."""
    steps, accuracies = run["curve"]["step"], run["curve"]["val_accuracy"]
    before = max((i for i, step in enumerate(steps) if step <= round(0.8 * run["steps"])), default=0)
    return float(accuracies[-1] - accuracies[before])


def has_converged(runs: Sequence[Run]) -> bool:
    """Say whether validation accuracy had stopped rising; too short a curve cannot tell, and counts as no."""
    long_enough = all(len(run["curve"]["step"]) >= 5 for run in runs)
    return long_enough and fmean(rise_over_last_fifth(run) for run in runs) < CONVERGED_BELOW


def summarise(settings: Settings, data: ImageData, schemes: Sequence[str], runs: Sequence[Run], command: str) -> Any:
    """Return the JSON-able summary of finished runs.

    Args:
        settings: The configuration.
        data: The images, for their counts and names.
        schemes: Schemes in the order shown; differences are to the first.
        runs: One record a scheme and seed.
        command: What reproduces the comparison.

    Returns:
        What `write_compare_report` reads.
    """
    by_scheme = {name: sorted((r for r in runs if r["scheme"] == name), key=lambda r: r["seed"]) for name in schemes}
    reference = [run["accuracy"] for run in by_scheme[schemes[0]]]
    entries = []
    for name in schemes:
        accuracies = [run["accuracy"] for run in by_scheme[name]]
        interval = student_interval(accuracies)
        difference = None
        if name != schemes[0]:
            paired = paired_difference(accuracies, reference)
            difference = {**paired._asdict(), "verdict": verdict(paired, schemes[0])}
        rise = fmean(rise_over_last_fifth(run) for run in by_scheme[name])
        entries.append(
            {
                "scheme": name,
                "description": describe(PositionScheme.parse(name), first_block=by_scheme[name][0]["first_block"]),
                "parameters": by_scheme[name][0]["parameters"],
                **interval._asdict(),
                "difference": difference,
                "rise": rise,
                "converged": has_converged(by_scheme[name]),
                "runs": by_scheme[name],
            }
        )
    seeds = len(reference)
    notes = []
    if len(schemes) > 1:
        notes.append(
            f"Differences to {schemes[0]} are paired by seed: under one seed all schemes share the split, the order of "
            "images, their shifts and the initial values of the parameters they have in common."
        )
    if seeds > 1:
        notes = [
            f"Accuracy on the test split, read once a run; mean and 95 % Student-t interval over {seeds} seeds.",
            *notes,
            "All runs share one test split: intervals tell how results vary from seed to seed, not on other images.",
            "Intervals are not adjusted for several comparisons.",
        ]
    else:
        notes = ["Accuracy on the test split, read once a run; one seed, so no intervals.", *notes]
    if any(run["versions"] != runs[0]["versions"] for run in runs):
        notes.append("The runs are of different versions of the software: see results.csv.")
    return {
        "command": command,
        "data": {
            "name": data.name,
            "train": runs[0]["train_images"],
            "val": runs[0]["val_images"],
            "test": len(data.test),
            "image_size": list(data.image_size),
            "channels": data.channels,
            "classes": list(data.classes),
            "note": data.note,
        },
        "model": settings.model,
        "settings": settings.as_dict(),
        "versions": runs[0]["versions"],
        "hardware": runs[0]["hardware"],
        "seconds": sum(run["seconds"] for run in runs),
        "schemes": entries,
        "notes": notes,
    }


def results_csv(settings: Settings, runs: Sequence[Run]) -> str:
    """Return one row a run: outcome, settings, versions, hardware, seconds."""
    columns = ("scheme", "seed", "accuracy", "loss", "parameters", "steps")
    rows = [
        {
            **{column: run[column] for column in columns},
            **settings.as_dict(),
            **run["versions"],
            "hardware": run["hardware"],
            "seconds": round(run["seconds"], 1),
        }
        for run in runs
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
