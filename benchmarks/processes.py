"""How far a training in two processes is from that in one: 20 steps of ViT-nano on digits, by gloo.

    python benchmarks/processes.py --csv results/scale/equality.csv

Repeated augmentation, an evaluated average of weights, the peak rate from the first step; no dropout, mixing or batch
norm, of which each process has its own.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mpvg.compare.summary import versions
from mpvg.files import as_csv, write_atomically

STEPS = 20
RECIPE = [
    "--model.recipe.schedule.warmup_epochs=0",  # the peak rate from step 0
    "--model.recipe.ema_decay=0.9",
    "--model.recipe.ema_evaluate=true",
    "--model.recipe.augmentation.repeats=3",
    "--model.recipe.augmentation.crop_scale=[0.5, 1.0]",
    "--model.recipe.augmentation.flip=0.5",
    "--model.recipe.augmentation.rand_augment=rand-m9-mstd0.5-inc1",
    "--model.recipe.augmentation.erasing=0.25",
]
WORDS = [
    "--data=digits",
    "--img-size=16",
    "--data.batch_size=48",
    f"--trainer.limit_train_batches={STEPS}",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    *RECIPE,
]
LAUNCHED = {"ddp": "ddp", "ddp, by torchrun": "ddp", "fsdp": "fsdp"}


def fit(out: Path, *, how: str | None) -> None:
    """Train in one process, or in two of a strategy."""
    strategy = [] if how is None else ["--trainer.devices=2", f"--trainer.strategy={LAUNCHED[how]}"]
    by = ["torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m"] if how == "ddp, by torchrun" else []
    command = ["-W", "ignore", "-m", *by, "mpvg", "fit", *WORDS, f"--out={out}", *(strategy or ["--trainer.devices=1"])]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def found(out: Path) -> dict[str, list[torch.Tensor]]:
    """Return what a training left: losses of each step, weights, their average, the optimiser's state."""
    with next(out.glob("csv/*/metrics.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    checkpoint: Any = torch.load(out / "last.ckpt", weights_only=True)
    losses = {
        name: [torch.tensor(float(row[name])) for row in rows if row[name]] for name in ("train/loss", "val/loss")
    }
    assert len(losses["train/loss"]) == checkpoint["global_step"] == STEPS
    weights = checkpoint["state_dict"]
    states = checkpoint["optimizer_states"][0]["state"].values()
    return {
        **losses,
        "weights": [value for name, value in weights.items() if name.startswith("model.")],
        "average": [value for name, value in weights.items() if name.startswith("ema.")],
        "optimiser's state": [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True, help="where to write the differences")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        fit(Path(folder, "one"), how=None)
        alone = found(Path(folder, "one"))
        for number, how in enumerate(LAUNCHED):
            fit(Path(folder, str(number)), how=how)
            for what, values in found(Path(folder, str(number))).items():
                pairs = zip(values, alone[what], strict=True)
                largest = max(float((one - other).abs().max()) for one, other in pairs)
                rows.append({"two processes": how, "what": what, "largest_difference": largest, "steps": STEPS})
                print(rows[-1], flush=True)
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.csv, as_csv([{**row, **versions()} for row in rows]))


if __name__ == "__main__":
    main()
