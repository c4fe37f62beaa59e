"""Whether detection and segmentation learn what they see: from scratch, on the first images of a set with objects.

    python benchmarks/dense_learning.py DATA       # a folder with instances.json and images/, in COCO's format

ViT-Adapter-Ti with Mask R-CNN and with UperNet, under two schemes each, is trained on sixteen images by the YAML files
beside this one and tested on the same images, from the checkpoint, in a process of its own. A row of each run is kept;
the same command goes on where it was stopped. Pictures of what was found lie in the runs' folders.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

import mpvg
from finetuning import run
from mpvg.checkpoint import load_any
from mpvg.data.dense.coco import Choice, CocoSplit, open_coco
from mpvg.dense.card import DenseCard
from mpvg.files import as_csv, write_atomically
from mpvg.machine import machine_name

ROOT = Path(__file__).parents[1]
SCHEMES = ("gap", "mpvg")
IMAGES = 16
WANTED: dict[str, dict[str, float]] = {"detection": {"box_ap50": 0.8, "mask_ap50": 0.7}, "segmentation": {"miou": 0.7}}
RUNS = [f"{task}-{scheme}" for task in WANTED for scheme in SCHEMES]


def learn(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train, test and draw; return the row of the run."""
    data, out = options.data, options.work / name
    task, scheme = name.split("-")
    config = ROOT / "benchmarks" / f"dense_learning_{task}.yaml"
    run("fit", "--config", config, "--data", data, "--model.scheme", scheme, "--out", out)
    found = tested(out / "last.safetensors")
    run("predict", "--ckpt", out / "last.safetensors", "--out", out / "predicted", *pictures(data))
    checkpoint = torch.load(out / "last.ckpt", map_location="cpu", weights_only=True, mmap=True)
    return {
        "task": task,
        "scheme": scheme,
        "images": found["images"],
        **counted(out / "last.safetensors", data),
        "steps": checkpoint["global_step"],
        **{name: found.get(name, "") for names in WANTED.values() for name in names},
        "minutes": round(checkpoint["callbacks"]["Stopwatch"]["seconds"] / 60, 1),
        "threads": 1,
        "mpvg": mpvg.__version__,
        "torch": torch.__version__,
        "hardware": machine_name("cpu"),
    }


def counted(checkpoint: Path, data: Path) -> dict[str, int]:
    """Return how many objects a run learned and was tested on, and how many were too small for both."""
    card, _ = load_any(checkpoint)
    assert isinstance(card, DenseCard)
    seen, chosen = card.evaluation, {name: card.data[name] for name in ("min_side", "limit")}
    split = open_coco(str(data), choice=Choice(short=seen["scale"], long=seen["long"], **chosen)).train
    assert isinstance(split, CocoSplit)
    kept = sum(len(split.objects(index).labels) for index in range(len(split)))
    return {"objects": kept, "left_out": split.count_too_small()}


def pictures(data: Path) -> list[Path]:
    """Return the first images of a set that have objects."""
    content = json.loads((data / "instances.json").read_text(encoding="utf-8"))
    with_objects = {annotation["image_id"] for annotation in content["annotations"]}
    names = {image["id"]: image["file_name"] for image in content["images"]}
    return [data / "images" / names[number] for number in sorted(with_objects)[:IMAGES]]


def tested(checkpoint: Path) -> dict[str, Any]:
    """Return what `mpvg test` measures of a checkpoint, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "mpvg", "test", "--ckpt", str(checkpoint), "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with instances.json and images/")
    parser.add_argument("--runs", default=",".join(RUNS), help=f"which of them ({', '.join(RUNS)})")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="runs of a thread each (one a core)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "dense-learning", help="folder of the runs")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "dense" / "learning.csv")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    finished = {f"{row['task']}-{row['scheme']}" for row in read_rows(options.results)}
    missing = [name for name in options.runs.split(",") if name not in finished]
    with ThreadPoolExecutor(options.at_once) as pool:
        for found in as_completed([pool.submit(learn, name, options) for name in missing]):
            write(found.result(), options.results)
    rows = read_rows(options.results)
    for row in rows:
        scores = [f"{name} {float(row[name]):.3f} (wanted {least})" for name, least in WANTED[row["task"]].items()]
        print(f"{row['task']} under {row['scheme']}: {', '.join(scores)}, {row['minutes']} minutes of training")
    return int(any(float(row[name]) < least for row in rows for name, least in WANTED[row["task"]].items()))


def write(row: dict[str, Any], results: Path) -> None:
    """Add the row of a run, in the table's order."""
    results.parent.mkdir(parents=True, exist_ok=True)
    rows = [*read_rows(results), row]
    write_atomically(results, as_csv(sorted(rows, key=lambda one: RUNS.index(f"{one['task']}-{one['scheme']}"))))


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    raise SystemExit(main())
