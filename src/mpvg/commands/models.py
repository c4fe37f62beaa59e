"""`mpvg models`: what can be trained, and how large it is."""

from __future__ import annotations

import argparse
import contextlib
import json
from typing import Any

import timm

from mpvg.paper import cells
from mpvg.scheme import SCHEMES


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("models", help="list the registered models and their parameters by scheme")
    parser.add_argument("--paper", action="store_true", help="the parameter counts of the paper's tables beside ours")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    return _paper(arguments.json) if arguments.paper else _registered(arguments.json)


def _paper(as_json: bool) -> int:
    found = cells()
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    width = max(len(cell["architecture"]) for cell in found)
    print(f"{'architecture':{width}}  {'method':7}  {'ours':>10}  {'paper':>7}")
    for cell in found:
        mark = "" if cell["matches"] else f"  differs: {cell['reason']}"
        print(
            f"{cell['architecture']:{width}}  {cell['method']:7}  {cell['parameters']:>10,}  "
            f"{cell['paper_millions']:>6}M{mark}"
        )
    agreeing = sum(cell["matches"] for cell in found)
    print(f"{agreeing} of {len(found)} printed figures are our counts, truncated as the paper does.")
    return 0


def _registered(as_json: bool) -> int:
    models = []
    for name in timm.list_models("mpvg_*"):
        counts = {}
        for scheme in SCHEMES:
            with contextlib.suppress(ValueError):  # a scheme that means nothing in this family
                model = timm.create_model(name, scheme=scheme, device="meta", weight_init="skip")
                counts[scheme] = sum(parameter.numel() for parameter in model.parameters())
        models.append({"name": name, "input_size": model.default_cfg["input_size"], "parameters": counts})
    if as_json:
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
