"""Six schemes on sentences and time series, small and short enough for two processor cores.

    python benchmarks/beyond_images.py DATA       # DATA/sst2 and DATA/ucr hold the sets, see docs/beyond_images.md

Each scheme's learning rate is the best of three on a validation split, then its seeds are tested. Beside them `gap` is
trained and tested with tokens in random order: what it reaches needs no order. Finished runs are kept: the same
command goes on. --only NAME takes one set.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

from finetuning import run
from mpvg.files import as_csv, write_atomically

ROOT = Path(__file__).parents[1]
SCHEMES = "default,gap,lape,lape_gap,pvg,mpvg"
RATES = "0.0005,0.001,0.003"
KEPT = ("scheme", "seed", "accuracy", "shuffled_accuracy", "val_accuracy", "lr", "lr_tried", "loss", "parameters",
        "steps", "epochs", "batch_size", "mpvg", "torch", "timm", "numpy", "python", "hardware", "seconds")  # fmt: skip


class Set(NamedTuple):
    """One labelled set: its task, its files under DATA, and how long it is trained on how many seeds."""

    task: str
    files: tuple[str, ...]
    epochs: int
    seeds: int = 5
    batch_size: int = 16


def of_archive(name: str, epochs: int) -> Set:
    return Set("series", (f"ucr/{name}_TRAIN.ts", f"ucr/{name}_TEST.ts"), epochs)


SETS = {
    "GunPoint": of_archive("GunPoint", 200),
    "BasicMotions": of_archive("BasicMotions", 60),
    "JapaneseVowels": of_archive("JapaneseVowels", 60),
    "OSULeaf": of_archive("OSULeaf", 80),
    "SST-2": Set("text", ("sst2",), 4, seeds=3, batch_size=64),
}


def compare(data: Path, work: Path, name: str, *, shuffled: bool, workers: int) -> None:
    """Run one comparison; what has finished of it is kept."""
    one = SETS[name]
    of_order = ["--schemes", "gap", "--shuffle-tokens"] if shuffled else ["--schemes", SCHEMES]
    sizes = ["--epochs", str(one.epochs), "--seeds", str(one.seeds), "--batch-size", str(one.batch_size)]
    files = [str(data / file) for file in one.files]
    out = folder(work, name, shuffled=shuffled)
    shared = ["--lr", RATES, "--workers", str(workers), "--out", str(out)]
    run("compare", "--task", one.task, "--data", *files, *of_order, *sizes, *shared)


def folder(work: Path, name: str, *, shuffled: bool) -> Path:
    return work / (f"{name}-shuffled" if shuffled else name)


def rows(work: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the sets, their runs, and each run's correlations of tokens and positions by block."""
    found: dict[str, list[dict[str, Any]]] = {"sets": [], "runs": [], "correlations": []}
    for name in SETS:
        for shuffled in (False, True):
            results = folder(work, name, shuffled=shuffled)
            of_all = {"set": name, "tokens": "shuffled" if shuffled else "in order"}
            with (results / "results.csv").open(newline="") as file:
                found["runs"] += [{**of_all, **{key: row[key] for key in KEPT}} for row in csv.DictReader(file)]
            summary = json.loads((results / "summary.json").read_text())
            if not shuffled:
                found["sets"].append(description(name, summary))
                found["correlations"] += correlations(name, summary)
    return found


def description(name: str, summary: dict[str, Any]) -> dict[str, Any]:
    data, counts = summary["data"], summary["data"]["class_counts"]["test"]
    shortest, middle, longest = data["lengths"]
    return {
        "set": name,
        "task": summary["settings"]["task"],
        "classes": len(data["classes"]),
        **{split: data[split] for split in ("train", "val", "test")},
        "lengths": str(longest) if shortest == longest else f"{shortest} to {longest}, median {middle}",
        "channels": data.get("in_chans", ""),
        "patch_size": data.get("patch_size", 1),
        "majority": round(max(counts) / sum(counts), 4),
        "epochs": summary["settings"]["epochs"],
        "steps": summary["schemes"][0]["runs"][0]["steps"],
        "seeds": len(summary["schemes"][0]["runs"]),
    }


def correlations(name: str, summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"set": name, "scheme": scheme["scheme"], "seed": one["seed"], "block": block, "correlation": value}
        for scheme in summary["schemes"]
        for one in scheme["runs"]
        if one["correlation"]
        for block, value in zip(one["correlation"]["block"], one["correlation"]["value"], strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of sst2/ and ucr/")
    parser.add_argument("--only", choices=SETS, nargs="+", help="take these sets, and write no results yet")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (2)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "beyond-images", help="folder of the runs")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "beyond_images")
    options = parser.parse_args()
    for name in options.only or SETS:
        for shuffled in (False, True):
            compare(options.data, options.work, name, shuffled=shuffled, workers=options.workers)
    if not options.only:
        options.results.mkdir(parents=True, exist_ok=True)
        for kind, found in rows(options.work).items():
            write_atomically(options.results / f"{kind}.csv", as_csv(found))


if __name__ == "__main__":
    main()
