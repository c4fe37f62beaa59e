"""Finished runs -> the numbers that the table, summary.json and the report show."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy
import timm
import torch

import mpvg
from mpvg.compare.inputs import one_and_the_same
from mpvg.compare.settings import Settings
from mpvg.data.remarks import remarks
from mpvg.data.splits import LabelledSet
from mpvg.files import as_csv
from mpvg.machine import machine_name
from mpvg.scheme import PositionScheme
from mpvg.stats import paired_difference, student_interval, verdict
from mpvg.train.recipe import Recipe

CONVERGED_BELOW = 0.005  # rise of the validation accuracy over the last fifth of the steps

Run = Mapping[str, Any]


def versions() -> dict[str, str]:
    modules = {"mpvg": mpvg, "torch": torch, "timm": timm, "numpy": numpy}
    return {name: module.__version__ for name, module in modules.items()} | {"python": platform.python_version()}


def hardware(device: str) -> str:
    """Return the machine's name and, of a processor, the threads that this process computes with."""
    name = machine_name(device)
    return f"{name}; threads a run: {torch.get_num_threads()}" if device == "cpu" else name


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


def best_run(runs: Sequence[Run], classes: Sequence[str]) -> dict[str, Any]:
    """Return where the best run of a scheme errs.

    Args:
        runs: Of one scheme.
        classes: Names.

    Returns:
        The run of the highest validation accuracy, counted on the test split; JSON-able.
    """
    best = max(runs, key=lambda run: (run["val_accuracy"], -run["seed"]))
    return {
        **{key: best[key] for key in ("seed", "val_accuracy", "accuracy", "confusion")},
        "per_class": [
            {"name": name, "samples": samples, "accuracy": right / samples if samples else None}
            for name, (right, samples) in zip(classes, _right_of_all(best, len(classes)), strict=True)
        ],
    }


def _right_of_all(run: Run, classes: int) -> list[tuple[int, int]]:
    """Return (samples told right, samples) for each true class."""
    counted = [(0, 0)] * classes
    for true, predicted, count in run["confusion"]:
        right, samples = counted[true]
        counted[true] = (right + count * (true == predicted), samples + count)
    return counted


def balanced_accuracy(run: Run, classes: int) -> float:
    """Return the mean of the accuracies of the classes that have test samples."""
    return fmean(right / samples for right, samples in _right_of_all(run, classes) if samples)


def summarise(
    settings: Settings,
    data: LabelledSet,
    schemes: Sequence[str],
    runs: Sequence[Run],
    lr_trials: Mapping[str, Any] | None,
    command: str,
) -> dict[str, Any]:
    """Return the JSON-able summary of finished runs.

    Args:
        settings: The configuration.
        data: The labelled set, for its counts and names.
        schemes: Schemes in the order shown; differences are to the first.
        runs: One record a scheme and seed.
        lr_trials: What was tried to choose learning rates.
        command: What reproduces the comparison.

    Returns:
        What `write_compare_report` reads.
    """
    by_scheme = {name: sorted((r for r in runs if r["scheme"] == name), key=lambda r: r["seed"]) for name in schemes}
    reference = [run["accuracy"] for run in by_scheme[schemes[0]]]
    entries = []
    for name, of_scheme in by_scheme.items():
        accuracies = [run["accuracy"] for run in of_scheme]
        difference = None
        if name != schemes[0]:
            paired = paired_difference(accuracies, reference)
            difference = {**paired._asdict(), "verdict": verdict(paired, schemes[0])}
        entries.append(
            {
                "scheme": name,
                "description": describe(
                    PositionScheme.parse(of_scheme[0]["built_as"]), first_block=of_scheme[0]["first_block"]
                ),
                "parameters": of_scheme[0]["parameters"],
                "lr": of_scheme[0]["lr"],
                **student_interval(accuracies)._asdict(),
                "difference": difference,
                "shuffled": _shuffled(of_scheme),
                "balanced_accuracy": fmean(balanced_accuracy(run, len(data.classes)) for run in of_scheme),
                "best": best_run(of_scheme, data.classes),
                "rise": fmean(map(rise_over_last_fifth, of_scheme)),
                "converged": has_converged(of_scheme),
                "runs": [{key: value for key, value in run.items() if key != "confusion"} for run in of_scheme],
            }
        )
    return {
        "command": command,
        "data": {
            "name": data.name,
            "train": runs[0]["train_samples"],
            "val": runs[0]["val_samples"],
            "test": len(data.test),
            "unit": data.unit,
            **facts_of(settings, data),
            "classes": list(data.classes),
            "class_counts": {"train": list(data.class_counts), "test": _counts(data)},
            "skipped": list(data.skipped),
            "note": data.note,
        },
        "model": settings.model,
        "settings": settings.as_dict(),
        "versions": runs[0]["versions"],
        "hardware": runs[0]["hardware"],
        "seconds": sum(run["seconds"] for run in runs),
        "lr_trials": lr_trials,
        "schemes": entries,
        "notes": _notes(settings, data, schemes, runs, lr_trials),
    }


def _shuffled(runs: Sequence[Run]) -> float | None:
    """Return the mean accuracy on shuffled tokens; None where it was not looked at."""
    found = [run["shuffled_accuracy"] for run in runs]
    return None if None in found else fmean(found)


def facts_of(settings: Settings, data: LabelledSet) -> Mapping[str, Any]:
    """Return what is to be told of the samples' shape."""
    if settings.sequences is None:
        from mpvg.compare.images import image_facts

        return image_facts(data)  # type: ignore[arg-type]
    from mpvg.compare.sequences import sequence_facts

    return sequence_facts(settings, data)  # type: ignore[arg-type]


def _start(settings: Settings, runs: Sequence[Run]) -> list[str]:
    """Say which weights the runs started from, and what each scheme could not take over of them."""
    if not settings.pretrained:
        return []
    source = "the weights of the model's tag" if settings.pretrained is True else Path(settings.pretrained).name
    how = "positions behind gates, which start shut" if settings.preserve else "position norms that start at one"
    notes = [f"Every run started from {source}; schemes that deliver positions have {how}."]
    schemes_by_loss: dict[str, list[str]] = {}
    for run in runs:
        for told in run["not_taken_over"]:
            of_told = schemes_by_loss.setdefault(told, [])
            of_told += [run["scheme"]] if run["scheme"] not in of_told else []
    return notes + [f"{told[0].upper()}{told[1:]} ({', '.join(names)})." for told, names in schemes_by_loss.items()]


def _fine_tuning(recipe: Recipe) -> list[str]:
    """Say what a recipe froze, and what it slowed down."""
    notes = {
        "all": [],
        "positions": ["Only positions and the classifier were trained: all else stayed as it was at the start."],
        "head": ["Only the classifier was trained: all else stayed as it was at the start."],
    }[recipe.trains]
    if recipe.layer_decay is not None:
        notes.append(
            f"Learning rates fall towards the input: each block's is {recipe.layer_decay:g} times the next one's."
        )
    return notes


def _counts(data: LabelledSet) -> list[int]:
    return numpy.bincount(data.test.labels, minlength=len(data.classes)).tolist()


def _notes(
    settings: Settings,
    data: LabelledSet,
    schemes: Sequence[str],
    runs: Sequence[Run],
    lr_trials: Mapping[str, Any] | None,
) -> list[str]:
    """Say what must be known to read the results."""
    seeds = len(runs) // len(schemes)
    notes = ["Accuracy on the test split, read once a run; one seed, so no intervals."]
    if seeds > 1:
        notes = [f"Accuracy on the test split, read once a run; mean and 95 % Student-t interval over {seeds} seeds."]
    if len(schemes) > 1:
        notes.append(
            f"Differences to {schemes[0]} are paired by seed: under one seed all schemes share the split, the order of "
            f"{data.unit}{', their shifts' if settings.sequences is None else ''} and the initial values of the "
            "parameters they have in common."
        )
    if settings.sequences is not None:
        trained = " They were trained on shuffled tokens too." if settings.sequences.shuffle_tokens else ""
        notes.append(
            f"Shuffled: the same models on the test split with each sequence's tokens in random order.{trained}"
        )
    if seeds > 1:
        notes += [
            "All runs share one test split: intervals tell how results vary from seed to seed, not on other "
            f"{data.unit}.",
            "Intervals are not adjusted for several comparisons.",
        ]
    notes += _start(settings, runs) + _fine_tuning(settings.recipe)
    part = f"{100 * settings.val_fraction:g} % of train, drawn by seed"
    source = part if data.val is None else "the source's own"
    notes.append(f"Validation split: {runs[0]['val_samples']} {data.unit}, {source}.")
    if lr_trials is not None:
        edge = [entry["scheme"] for entry in lr_trials["by_scheme"] if entry["at_edge"]]
        notes.append(
            f"Learning rate of each scheme: the best of {', '.join(f'{lr:g}' for lr in sorted(settings.lrs))} on the "
            f"validation split of seed {lr_trials['seed']}."
            + (f" At the edge of those tried for {', '.join(edge)}: try wider ones." if edge else "")
        )
    notes += one_and_the_same(settings.model, {run["scheme"]: run["built_as"] for run in runs})
    notes += remarks(data)
    if any(run["hardware"] != runs[0]["hardware"] for run in runs):
        notes.append("The runs are of different hardware: see results.csv.")
    if any(run["versions"] != runs[0]["versions"] for run in runs):
        notes.append("The runs are of different versions of the software: see results.csv.")
    return notes


def results_csv(settings: Settings, runs: Sequence[Run]) -> str:
    """Return one row a run: outcome, settings, versions, hardware, seconds."""
    columns = ["scheme", "seed", "lr", "accuracy", "loss", "val_accuracy", "parameters", "steps"]
    if settings.sequences is not None:
        columns.insert(4, "shuffled_accuracy")
    shared = {key: value for key, value in settings.as_dict().items() if key != "lr"}
    rows = [
        {
            **{column: run[column] for column in columns},
            **shared,
            "lr_tried": " ".join(map(repr, settings.lrs)),
            **run["versions"],
            "hardware": run["hardware"],
            "seconds": round(run["seconds"], 1),
        }
        for run in runs
    ]
    return as_csv(rows)
