"""Tables from the rows that `mpvg bench` and benchmarks/data_loading.py leave under results/bench."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import timm

from mpvg.cost.hours import EFFICIENCY, IMAGENET, RECIPES, Recipe, hours, training_flops
from tables import RESULTS, Row, number, rows, table

BENCH = RESULTS / "bench"
LOADING = "data_loading.csv"
ATTEMPTS = RESULTS / "attempts" / "deit.csv"
GPUS = (1, 4, 8, 16, 64)
SPEEDS = (250, 500, 1000, 2000, 4000)
NO_GPU = "not measured here; run `mpvg bench --train --device cuda`"
NOTHING = "Not measured yet."
MODES = ("eager", "eager, graphs", "compile", "compile, graphs", "onnx")
MODELS = [f"mpvg_deit_{size}_patch16_224" for size in ("tiny", "small", "base")] + timm.list_models("mpvg_*")


def bench_rows(folder: Path = BENCH) -> list[Row]:
    """Return the measured ratios of every file, in the order of the files' names."""
    return [row for path in sorted(folder.glob("*.csv")) if path.name != LOADING for row in rows(path)]


def ratio(row: Row) -> str:
    if not row["ratio"]:
        return "too noisy to tell"
    return f"{float(row['ratio']):.3f} ({float(row['low']):.3f} to {float(row['high']):.3f})"


def what(row: Row) -> str:
    """Return what was measured: the scheme, and whether it was folded."""
    return f"`{row['scheme']}`" + (", folded" if row["variant"] == "folded" else "")


def ratios(found: Iterable[Row], *, work: str) -> str:
    """Return the ratios of one kind of work: a table for each machine and type, with a column for each mode.

    Args:
        found: Rows of results/bench.
        work: "inference" or "training".

    Returns:
        The tables; the noise is what the other model beside itself gave, the widest of the line's modes.
    """
    by_machine: dict[str, list[Row]] = {}
    for row in found:
        if row["work"] == work:
            by_machine.setdefault(f"{place(row)}, {row['dtype']}, {row['versions'].partition(',')[0]}", []).append(row)
    return "\n\n".join(f"{machine}:\n\n{_by_mode(own)}" for machine, own in by_machine.items()) or NOTHING


def _by_mode(found: Sequence[Row]) -> str:
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in found)]
    by_line: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in sorted(found, key=lambda row: (MODELS.index(row["model"]), int(row["batch"]))):
        line = (f"`{row['model']}`", f"`{row['against']}`", row["size"] or "its own", row["batch"], what(row))
        by_line.setdefault(line, {})[row["mode"]] = row
    body = [
        [*line, *(ratio(by_mode[mode]) if mode in by_mode else "" for mode in modes), noise(by_mode.values())]
        for line, by_mode in by_line.items()
    ]
    return table(["model", "beside", "pixels", "batch", "scheme", *modes, "noise"], body)


def place(row: Row) -> str:
    """Return the hardware, with the threads where it is a processor."""
    return row["hardware"] if is_gpu(row) else f"{row['hardware']}, {row['threads']} threads"


def noise(found: Iterable[Row]) -> str:
    measured = [row for row in found if row["noise_low"] and row["noise_high"]]
    if not measured:
        return ""
    low, high = min(float(row["noise_low"]) for row in measured), max(float(row["noise_high"]) for row in measured)
    return f"{low:.3f} to {high:.3f}"


def peaks(found: Iterable[Row], *, work: str) -> str:
    """Return the peak memory of one kind of work, where it was measured, a line for each model, batch and mode."""
    body = [
        [f"`{row['model']}`", what(row), row["mode"], row["batch"]]
        + [f"{float(row[name]):,.1f}" for name in ("peak_mib", "peak_mib_against")]
        + [f"{float(row['peak_mib']) / float(row['peak_mib_against']):.3f}"]
        for row in found
        if row["work"] == work and row["peak_mib"] and row["peak_mib_against"]
    ]
    header = ["model", "scheme", "mode", "batch", "MiB", "MiB of the other", "ratio"]
    return table(header, body) if body else NOTHING


def attempts(path: Path = ATTEMPTS) -> str:
    """Return what ways to save more have brought, as benchmarks/attempts.py found."""
    if not path.is_file():
        return NOTHING
    body = [
        [f"DeiT, {row['size']}", row["batch"], row["work"], row["attempt"], ratio(row), noise([row]), row["difference"]]
        for row in rows(path)
    ]
    return table(["model", "batch", "work", "way", "beside timm's", "noise", "difference"], body)


def is_gpu(row: Row) -> bool:
    return row["device"].startswith("cuda")


def throughputs(found: Iterable[Row]) -> dict[tuple[str, str], tuple[Row, float]]:
    """Return the highest training throughput under mpvg by model and hardware: a row, and images a second."""
    best: dict[tuple[str, str], tuple[Row, float]] = {}
    for row in found:
        if (row["work"], row["scheme"], row["size"]) == ("training", "mpvg", ""):
            speed = float(row["batch"]) / float(row["milliseconds"]) * 1e3
            key = row["model"], place(row)
            if key not in best or speed > best[key][1]:
                best[key] = row, speed
    return best


def loading(folder: Path = BENCH) -> float | None:
    """Return the images a second that a core loads, or None where nobody has measured it."""
    path = folder / LOADING
    return median(float(row["images_per_second_per_core"]) for row in rows(path)) if path.is_file() else None


def recipe_hours(found: Sequence[Row], loader: float | None) -> str:
    """Return the hours of the ImageNet recipes by number of GPUs; only what was measured has a number.

    Args:
        found: Rows of results/bench.
        loader: Images a second that a core loads; None where it was not measured.
    """
    best = throughputs(found)
    body = []
    for recipe in RECIPES:
        measured = [value for (model, _), value in best.items() if model == recipe.model]
        lines = [_hours_line(recipe, row, speed, loader) for row, speed in measured]
        if not any(is_gpu(row) for row, _ in measured):
            lines.append([NO_GPU, "", "", *[""] * len(GPUS), ""])
        body += [[recipe.label, str(recipe.epochs), *line] for line in lines]
    header = ["recipe", "epochs", "hardware", "batch", "images/s", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)]
    assumed = f"Assumed: {IMAGENET:,} images an epoch; {EFFICIENCY:.0%} of a GPU's throughput where several train."
    return f"{table([*header, 'cores to feed one'], body)}\n\n{assumed}"


def _hours_line(recipe: Recipe, row: Row, speed: float, loader: float | None) -> list[str]:
    counts = GPUS if is_gpu(row) else ()
    predicted = [number(hours(speed, gpus=gpus, epochs=recipe.epochs), ",.1f") + " h" for gpus in counts]
    if not is_gpu(row):  # one machine without GPU, which no column names
        predicted = [f"no GPU: {hours(speed, gpus=1, epochs=recipe.epochs) / 24:,.0f} days", *[""] * (len(GPUS) - 1)]
    cores = "loader not measured" if loader is None else f"{speed / loader:,.2f}"
    return [f"{place(row)}, {row['dtype']}, {row['mode']}", row["batch"], f"{speed:,.1f}", *predicted, cores]


def hours_by_speed(loader: float | None) -> str:
    """Return the hours of 300 epochs by a GPU's training throughput, whoever measured it, and the cores to feed it."""
    body = []
    for speed in SPEEDS:
        cores = "loader not measured" if loader is None else f"{speed / loader:,.1f}"
        body.append([f"{speed:,}", *(f"{hours(speed, gpus=gpus, epochs=300):,.1f}" for gpus in GPUS), cores])
    header = [f"{gpus} GPU{'s' * (gpus > 1)}, hours" for gpus in GPUS]
    return table(["images/s of one GPU", *header, "cores to feed one"], body)


def recipe_flops(counted: Sequence[Row]) -> str:
    """Return the matrix-product FLOPs of training by recipe and scheme.

    Args:
        counted: Rows of results/cost/counted.csv.
    """
    schemes = ("default", "gap", "mpvg")
    flops = {(row["model"], row["scheme"]): float(row["matmul"]) - float(row["merging"]) for row in counted}
    body = [
        [recipe.label, str(recipe.epochs)]
        + [f"{training_flops(flops[recipe.model, scheme], epochs=recipe.epochs) / 1e18:.3f}" for scheme in schemes]
        for recipe in RECIPES
    ]
    return table(["recipe", "epochs", *(f"`{scheme}`, 10¹⁸ FLOPs" for scheme in schemes)], body)
