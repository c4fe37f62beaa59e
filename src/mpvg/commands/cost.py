"""`mpvg cost`: what position schemes cost in parameters, work and memory, counted."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import timm

from mpvg.commands.options import check_writable, positive, split_schemes
from mpvg.cost.count import as_row, costs
from mpvg.cost.examples import SEQUENCES, size_arguments
from mpvg.errors import UserError
from mpvg.files import as_csv, write_atomically
from mpvg.models.architectures import own_classifiers
from mpvg.scheme import SCHEMES
from mpvg.train.build import check_build, check_registered, check_scheme

REFERENCES: Final = ("gap", "default")
Row = dict[str, Any]

_EXAMPLES = """examples:
  mpvg cost
  mpvg cost mpvg_deit_tiny_patch16_224 --batch 128
  mpvg cost mpvg_swin_tiny_patch4_window7_224 --schemes 'pvg,mpvg,mpvg:last_norm=3' --img-size 448
  mpvg cost mpvg_sequence --img-size 512                     series of one channel, so many steps
  mpvg cost --csv cost.csv"""
_COLUMNS = """
Millions of FLOPs, two a multiply-accumulate. products: matrix products of one {one}, as torch counts them with fused
attention off. LN': the scheme's own norms, once a forward pass whatever the batch. adds: its additions, each {one}.
MiB of float32 kept for backward, fused attention off: {one}, for each; step, once. vs gap, vs default: all FLOPs of one
{one} in a batch of {batch} against those schemes in the same model; folded: against gap after mpvg.fold."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "cost",
        help="count what position schemes cost: parameters, FLOPs, memory for backward",
        description="Count what position schemes cost: parameters, FLOPs, memory kept for backward.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="registered mpvg_* models (all of images); mpvg_sequence")
    add("--schemes", metavar="A,B,...", help=f"names or texts ({','.join(SCHEMES)})")
    add("--batch", type=positive, default=1, metavar="N", help="images a forward pass, which share its norms (1)")
    add(
        "--img-size",
        type=positive,
        metavar="PIXELS",
        help="side of the images, steps of mpvg_sequence (each model's own)",
    )
    add("--csv", type=Path, metavar="FILE", help="write every number to a CSV file")
    add("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    named = dict.fromkeys(arguments.models)
    models = [name if name == SEQUENCES else check_registered(name) for name in named]
    schemes = _schemes(arguments.schemes)
    file = arguments.csv.expanduser() if arguments.csv else None
    if file:
        check_writable("--csv", file)
    models = _check_size(models, arguments.img_size)
    if arguments.schemes:
        for scheme in schemes:
            _check_meaning(models, scheme, arguments.img_size)
    found = _rows(models, schemes, arguments.img_size, arguments.batch)
    rows = list(found) if arguments.json else _print(found, models, schemes, arguments.batch)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    if file:
        write_atomically(file, as_csv(rows))
    return 0


def _rows(models: Sequence[str], schemes: Sequence[str], img_size: int | None, batch: int) -> Iterator[Row]:
    for model in models:
        counted = {one.scheme: one for one in costs([model], [*REFERENCES, *schemes], img_size=img_size)}
        references = {name: counted[name] for name in REFERENCES}
        yield from (as_row(counted[scheme], references, batch) for scheme in schemes if scheme in counted)


def _print(rows: Iterator[Row], models: Sequence[str], schemes: Sequence[str], batch: int) -> list[Row]:
    """Print each row as soon as it is counted, and return all."""
    one = "series" if set(models) == {SEQUENCES} else "image"
    names = f"{{:{max(map(len, models))}}} {{:{max(map(len, [*schemes, 'scheme']))}}} "
    heads = ("parameters", "products", "LN'", "adds", one, "step", "vs gap", "default", "folded")
    print(names.format("model", "scheme") + "{:>11} {:>9} {:>6} {:>6} {:>7} {:>6} {:>8} {:>8} {:>8}".format(*heads))
    printed = []
    for row in rows:
        print(
            names.format(row["model"], row["scheme"]) + f"{row['parameters']:>11,} {row['matmul'] / 1e6:>9,.1f} "
            f"{row['norm_flops'] / 1e6:>6.2f} {row['added'] / 1e6:>6.3f} {row['kept_image'] / 2**20:>7.2f} "
            f"{row['kept_once'] / 2**20:>6.2f} {row['flops_vs_gap']:>+8.3%} {row['flops_vs_default']:>+8.3%} "
            f"{row['folded_flops_vs_gap']:>+8.3%}",
            flush=True,
        )
        printed.append(row)
    print(_COLUMNS.format(batch=batch, one=one))
    steps = next((row["width"] for row in printed if row["model"] == SEQUENCES), None)
    if steps:
        print(f"{SEQUENCES}: series of one channel and {steps} steps.")
    return printed


def _schemes(text: str | None) -> list[str]:
    """Return the schemes' canonical texts."""
    if text is None:
        return list(SCHEMES)
    return list(dict.fromkeys(check_scheme(scheme) for scheme in split_schemes(text)))


def _check_size(named: Sequence[str], img_size: int | None) -> list[str]:
    """Return the models that take images of this size: all that were named, or of all those that can."""
    registered = own_classifiers()
    if img_size is None:
        return list(named) or registered
    fitting, refusals = [], []
    for name in named or registered:
        try:
            if name != SEQUENCES:  # which takes any length
                check_build(name, "gap", {"img_size": (img_size, img_size)})
            fitting.append(name)
        except UserError as error:
            refusals.append(error)
    if refusals and (named or not fitting):
        raise refusals[0]
    if refusals:
        who = f"{len(refusals)} of {len(registered)} models cannot take {img_size} pixels and are left out"
        print(f"mpvg: {who}; {refusals[0]}", file=sys.stderr)
    return fitting


def _check_meaning(models: Sequence[str], scheme: str, img_size: int | None) -> None:
    """Refuse a scheme that means nothing in any of the models."""
    reason = None
    for name in models:
        try:
            timm.create_model(name, scheme=scheme, device="meta", weight_init="skip", **size_arguments(name, img_size))
            return
        except ValueError as error:
            reason = reason or f"{name}: {error}"
    raise UserError(reason or "no model is left.")
