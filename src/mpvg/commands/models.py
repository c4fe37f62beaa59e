"""`mpvg models`: what can be trained, and how large it is."""

from __future__ import annotations

import argparse
import contextlib
import json
from typing import Any

import timm

from mpvg.scheme import SCHEMES


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("models", help="list the registered models and their parameters by scheme")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    models = []
    for name in timm.list_models("mpvg_*"):
        counts = {}
        for scheme in SCHEMES:
            with contextlib.suppress(ValueError):  # a scheme that means nothing in this family
                model = timm.create_model(name, scheme=scheme, device="meta")
                counts[scheme] = sum(parameter.numel() for parameter in model.parameters())
        models.append({"name": name, "input_size": model.default_cfg["input_size"], "parameters": counts})
    if arguments.json:
        print(json.dumps(models, indent=1))
        return 0
    width = max(len(entry["name"]) for entry in models)
    print(f"{'model':{width}}  {'input':>11}  " + "  ".join(f"{scheme:>10}" for scheme in SCHEMES))
    for entry in models:
        size = " x ".join(map(str, entry["input_size"]))
        counts = entry["parameters"]
        counted = "  ".join(f"{counts[scheme]:>10,}" if scheme in counts else " " * 10 for scheme in SCHEMES)
        print(f"{entry['name']:{width}}  {size:>11}  {counted}")
    print("Parameters by scheme.")
    return 0
