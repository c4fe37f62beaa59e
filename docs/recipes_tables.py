"""Write the tables of docs/recipes.md from recipes/ and results/recipes: python docs/recipes_tables.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tables import DOCS, RESULTS, Tables, number, rows, table, write

DOCUMENT = DOCS / "recipes.md"
FOLDER = DOCS.parent / "recipes"
SPEED = RESULTS / "recipes" / "vit_lite_training.csv"
_ORDER = (
    "imagenet1k/deit_tiny", "imagenet1k/deit_small", "imagenet1k/deit_base", "imagenet1k/swin_tiny",
    "imagenet1k/ceit_tiny", "imagenet1k/t2t_vit_7", "cifar100/vit_lite_7_4", "cifar100/t2t_vit_7_finetune",
)  # fmt: skip


def recipes() -> str:
    """Return what each recipe's file sets, in short."""
    lines = [_line(name, yaml.safe_load((FOLDER / f"{name}.yaml").read_text())) for name in _ORDER]
    header = ["recipe", "epochs", "batch", "peak rate", "schedule", "decay", "augmentation", "average"]
    return table(header, lines)


def _line(name: str, config: dict[str, Any]) -> list[str]:
    recipe, data = config["model"]["recipe"], config["data"]
    schedule, drawn = recipe["schedule"], recipe["augmentation"]
    scale = data["batch_size"] / recipe["lr_batch"] if "lr_batch" in recipe else 1
    rate = f"{recipe['lr'] * scale:.2g}"
    if "backbone_lr" in recipe:
        rate += f", {recipe['lr'] * recipe['backbone_lr']:.2g} below the classifier"
    return [
        f"[{name}](../recipes/{name}.yaml)",
        str(config["trainer"]["max_epochs"]),
        str(data["batch_size"]),
        rate,
        f"{schedule['warmup_epochs']} epochs of warm-up, by {schedule['by']}",
        f"{recipe['weight_decay']:g}" + (", of all" if recipe.get("decay_all") else ""),
        _augmentation(drawn),
        {None: "", False: "kept", True: "kept and tested"}[recipe.get("ema_evaluate")],
    ]


def _augmentation(drawn: dict[str, Any]) -> str:
    if "rand_augment" not in drawn:
        return f"flip, crop from a border of {drawn['padding']}"
    order = "after" if drawn["erase_after_mixup"] else "before"
    repeated = f", each image {drawn['repeats']} times" if drawn["repeats"] > 1 else ""
    return f"crop from {drawn['crop_scale'][0]:g} of the area, RandAugment, erasing {order} mixing{repeated}"


def speed() -> str:
    """Return images a second of training, ours beside a plain prototype."""
    found = rows(SPEED)
    body = []
    for row in found:
        times = f"{float(row['faster']):.2f} ({float(row['faster_low']):.2f} to {float(row['faster_high']):.2f})"
        speed = number(float(row["images_per_second"]), ",.0f")
        body.append([row["work"], row["precision"], speed, "" if row["work"] == row["beside"] else times])
    first = found[0]
    where = f"{first['hardware']}, {first['threads']} threads, batches of {first['batch']}, {first['versions']}"
    return f"{where}; load before: {first['load']}:\n\n" + table(
        ["training", "precision", "images a second", "times the prototype (95 %)"], body
    )


TABLES: Tables = {"recipes": recipes, "speed": speed}


if __name__ == "__main__":
    write(Path(DOCUMENT), TABLES)
