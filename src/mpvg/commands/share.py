"""`mpvg share`: a checkpoint as a folder that timm and the Hub read, with a model card."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch

from mpvg.checkpoint import load_model
from mpvg.errors import RunError, UserError
from mpvg.out import source_name
from mpvg.share import save

_EXAMPLES = """examples:
  mpvg share runs/fit/best.ckpt my_model
  mpvg share runs/fit/best.ckpt my_model --licence cc-by-4.0 --data 'Flowers, 2024 season' --metric 'accuracy, %=91.3'

Then, anywhere: timm.create_model("local-dir:my_model", pretrained=True), after import mpvg."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "share",
        help="write a checkpoint as a folder that timm reads, with a model card",
        description="Write a checkpoint as a folder that timm and the Hub read: weights, configuration, model card.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("ckpt", metavar="CKPT", type=Path, help="a .ckpt or .safetensors of mpvg fit or mpvg compare")
    add("out", metavar="DIR", type=Path, help="the folder")
    add("--data", metavar="TEXT", help="what it was trained on (the name of its images)")
    add("--metric", action="append", default=[], metavar="NAME=VALUE", help="what was measured of it; may be repeated")
    add("--licence", metavar="SPDX", help="of the weights, such as apache-2.0 (not stated)")


def run(arguments: argparse.Namespace) -> int:
    """Run `mpvg share` and return its exit code."""
    metrics = dict(_metric(text) for text in arguments.metric)
    card, model = load_model(arguments.ckpt)
    seen = card.preprocessing
    folder = save(
        model,
        arguments.out,
        classes=card.classes,
        data=arguments.data or source_name(str(card.data["source"])),
        metrics=metrics,
        licence=arguments.licence,
        preprocessing={
            "mean": seen.mean,
            "std": seen.std,
            "interpolation": seen.interpolation,
            "crop_pct": seen.crop or 1.0,
            "crop_mode": "squash" if seen.crop is None else "center",
        },
    )
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(1, seen.channels, *seen.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not torch.equal(again(images), model(images)):
            raise RunError(
                f"{folder} was written, but the model that timm makes of it answers otherwise: do not use it"
            )
    print(f"{folder}: timm.create_model('local-dir:{folder}', pretrained=True) gives the same model, bit for bit.")
    return 0


def _metric(text: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not (name.strip() and equals and value.strip()):
        raise UserError(f"--metric {text!r} is not NAME=VALUE, such as 'accuracy, %=91.3'.")
    return name.strip(), value.strip()
