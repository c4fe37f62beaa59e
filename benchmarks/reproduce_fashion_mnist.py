"""Six schemes and a control on Fashion-MNIST, small and short enough for two processor cores.

    python benchmarks/reproduce_fashion_mnist.py DATA       # torchvision's FashionMNIST lies in DATA

Each scheme's learning rate is the best of three on a validation split, then three seeds of it are tested. The control
is pvg with the Last LN's bias at twice the rate of all else. Finished runs are kept: the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from finetuning import run
from mpvg.files import as_csv, write_atomically

ROOT = Path(__file__).parents[1]
COMPARISONS = {
    "schemes": ["--schemes", "default,gap,lape,lape_gap,pvg,mpvg"],
    "control": ["--schemes", "pvg", "--last-norm-bias-lr", "2"],
}
SHARED = ["--seeds", "3", "--epochs", "2", "--lr", "0.002,0.004,0.008"]
KEPT = ("scheme", "last_norm_bias_lr", "seed", "accuracy", "loss", "epochs", "steps", "lr", "lr_tried", "parameters",
        "mpvg", "torch", "timm", "numpy", "python", "hardware")  # fmt: skip


def rows(results: Path) -> list[dict[str, Any]]:
    with results.open(newline="") as file:
        return [
            {
                "model": row["model"],
                **{name: row[name] for name in KEPT},
                "hours": round(float(row["seconds"]) / 3600, 4),
            }
            for row in csv.DictReader(file)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder in which torchvision finds FashionMNIST")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "reproduce-fashion-mnist", help="folder of the runs"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "fashion_mnist_vit_nano.csv")
    options = parser.parse_args()
    found = []
    for name, schemes in COMPARISONS.items():
        out = options.work / name
        run("compare", "--data", f"FashionMNIST:{options.data}", *schemes, *SHARED, "--out", out)
        found += rows(out / "results.csv")
    write_atomically(options.results, as_csv(found))


if __name__ == "__main__":
    main()
