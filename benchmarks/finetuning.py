"""Does a pretrained model gain from positions it was not trained with? Pretrain small plain ViTs, convert, fine-tune.

    python benchmarks/finetuning.py cifar100.npz work/ --csv results/finetuning/cifar100.csv

The .npz holds CIFAR-100 under MedMNIST's keys. Two plain models learn its first 80 classes, one with a class token and
one averaged; fine-tuning is on 50 images of each of the other 20. Every step is a command of mpvg and is printed; what
has been finished is kept, so the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mpvg.files import as_csv, write_atomically

PRETRAINED_CLASSES, IMAGES_A_CLASS = 80, 50
POOLED, TOKEN = "gap,lape_gap,pvg,mpvg", "default,lape,pvg_cls,mpvg"
STARTS: dict[str, tuple[str | None, str, list[str]]] = {  # pretrained scheme, schemes, options
    "scratch": (None, "gap,default,mpvg", []),
    "pooled, preserving": ("gap", POOLED, []),
    "pooled, norms at one": ("gap", POOLED, ["--no-preserve"]),
    "class token, preserving": ("default", TOKEN, []),
    "class token, norms at one": ("default", TOKEN, ["--no-preserve"]),
    "pooled, head only": ("gap", "gap", ["--trains", "head"]),
    "pooled, positions and head only": ("gap", "gap,mpvg", ["--trains", "positions"]),
}
KEPT = ("scheme", "seed", "lr", "accuracy", "val_accuracy", "parameters", "steps", "epochs", "batch_size", "trains",
        "preserve", "lr_tried", "mpvg", "torch", "timm", "hardware", "seconds")  # fmt: skip


def write_splits(source: Path, folder: Path) -> None:
    """Write pretraining.npz and finetuning.npz: other classes, labelled from 0 on."""
    data = np.load(source)
    parts = {part: (data[f"{part}_images"], data[f"{part}_labels"].reshape(-1)) for part in ("train", "test")}

    def take(part: str, classes: range, first: int = 0, stop: int | None = None) -> dict[str, Any]:
        images, labels = parts[part]
        chosen = np.concatenate([np.flatnonzero(labels == label)[first:stop] for label in classes])
        return {"images": images[chosen], "labels": labels[chosen] - classes.start}

    seen, other = range(PRETRAINED_CLASSES), range(PRETRAINED_CLASSES, 100)
    sets = {
        "pretraining": {"train": take("train", seen), "test": take("test", seen)},
        "finetuning": {
            "train": take("train", other, stop=IMAGES_A_CLASS),
            "val": take("train", other, IMAGES_A_CLASS, 2 * IMAGES_A_CLASS),
            "test": take("test", other),
        },
    }
    for name, splits in sets.items():
        arrays = {f"{split}_{kind}": array for split, found in splits.items() for kind, array in found.items()}
        np.savez(folder / f"{name}.npz", **arrays)


def run(*words: object) -> None:
    """Run a command of mpvg; where it fails, it has said why."""
    command = ["mpvg", *map(str, words)]
    print("$", shlex.join(command), flush=True)
    code = subprocess.run([sys.executable, "-W", "ignore", "-m", *command]).returncode
    if code:
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="CIFAR-100 as .npz")
    parser.add_argument("work", type=Path, help="folder for data, models and runs")
    parser.add_argument("--csv", type=Path, required=True, help="where to write one row a run")
    parser.add_argument("--epochs", type=int, nargs=2, default=(10, 20), help="of pretraining and fine-tuning (10 20)")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "finetuning.npz").is_file():
        write_splits(arguments.source, work)
    for scheme in ("gap", "default"):
        run("fit", "--model.scheme", scheme, "--data", work / "pretraining.npz", "--out", work / f"pretrained-{scheme}",
            "--trainer.max_epochs", arguments.epochs[0], "--model.recipe.lr", 0.002)  # fmt: skip
    rows = []
    for name, (pretrained, schemes, options) in STARTS.items():
        out = work / name.replace(", ", "-").replace(" ", "_")
        start = ["--pretrained", work / f"pretrained-{pretrained}" / "best.safetensors"] if pretrained else []
        rates = "0.001,0.004" if "only" not in name else "0.004,0.016"
        run("compare", "--data", work / "finetuning.npz", "--schemes", schemes, "--seeds", arguments.seeds,
            "--lr", rates, "--epochs", arguments.epochs[1], "--batch-size", 50, "--out", out, *start, *options,
        )  # fmt: skip
        with (out / "results.csv").open() as file:
            rows += [{"start": name, **{key: row[key] for key in KEPT}} for row in csv.DictReader(file)]
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.csv, as_csv(rows))


if __name__ == "__main__":
    main()
