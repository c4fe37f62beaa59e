"""The command line: `mpvg compare` and `mpvg models`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from mpvg import __version__
from mpvg.errors import UserError

DEFAULT_SCHEMES = "default,gap,lape,lape_gap,pvg,mpvg"


class Parser(argparse.ArgumentParser):
    """argparse, with errors that are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for bad input, 3 for a run that failed."""
    try:
        arguments = _parser().parse_args(argv)
        return _models(arguments) if arguments.command == "models" else _compare(arguments)
    except UserError as error:
        return _fail(error, code=2)
    except OSError as error:  # a full disk, or a file that cannot be written
        file = error.filename2 or error.filename or "a file"
        return _fail(f"{file} cannot be used ({error.strerror}): make room or move it. Finished runs are kept.", code=2)
    except KeyboardInterrupt:
        return _fail("stopped; finished runs are kept, and the same command goes on from there.", code=130)


def _compare(arguments: argparse.Namespace) -> int:
    missing = [name for name in ("jinja2", "matplotlib", "PIL", "rich", "scipy", "sklearn") if find_spec(name) is None]
    if missing:
        raise UserError(f"mpvg compare needs {', '.join(missing)}: pip install 'mpvg[compare]'.")
    from mpvg.compare import compare
    from mpvg.compare.runner import RunError
    from mpvg.compare.settings import Settings

    settings = Settings(
        data=arguments.data,
        model=arguments.model,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        img_size=arguments.img_size,
    )
    out = arguments.out or Path("runs") / f"compare-{Path(settings.data).stem}-{settings.model}"
    options = {
        "--data": settings.data, "--model": settings.model, "--schemes": arguments.schemes, "--seeds": arguments.seeds,
        "--epochs": settings.epochs, "--batch-size": settings.batch_size, "--lr": settings.lr,
        "--img-size": settings.img_size,
    }  # fmt: skip
    words = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    try:
        compare(
            settings,
            re.split(r",(?!\s*\w+\s*=)", arguments.schemes),  # commas inside "mpvg:last_norm=5,first_block=true" stay
            seeds=arguments.seeds,
            out=out,
            workers=arguments.workers,
            overwrite=arguments.overwrite,
            command=shlex.join(["mpvg", "compare", *words]),
        )
    except RunError as error:
        return _fail(f"{error} Finished runs are kept in {out}.", code=3)
    return 0


def _models(arguments: argparse.Namespace) -> int:
    import timm

    from mpvg.scheme import SCHEMES

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


def _parser() -> Parser:
    parser = Parser(prog="mpvg", description="Position schemes for vision transformers.")
    parser.add_argument("--version", action="version", version=f"mpvg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    models = commands.add_parser("models", help="list the registered models and their parameters by scheme")
    models.add_argument("--json", action="store_true", help="as JSON")
    compare = commands.add_parser(
        "compare",
        help="train position schemes side by side on a set of images",
        description="Train position schemes side by side on a set of images and tell whether they differ.",
        epilog="examples:\n"
        "  mpvg compare\n"
        "  mpvg compare --data my_images/ --img-size 32 --schemes default,mpvg --seeds 5 --epochs 30\n"
        "  mpvg compare --data pathmnist.npz --schemes 'mpvg,mpvg:last_norm=3,mpvg:hierarchical=false'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = compare.add_argument
    add(
        "--data", default="digits", metavar="SOURCE", help="digits, a folder with train/ and test/, or an .npz (digits)"
    )
    add("--model", default="mpvg_vit_nano", help="a registered mpvg_* model (mpvg_vit_nano)")
    add("--schemes", default=DEFAULT_SCHEMES, metavar="A,B,...", help=f"compared to the first ({DEFAULT_SCHEMES})")
    add("--seeds", type=_positive, default=3, metavar="N", help="runs a scheme, with seeds from 0 (3)")
    add("--epochs", type=_positive, default=50, metavar="E", help="passes over the training images (50)")
    add("--batch-size", type=_positive, default=64, metavar="B", help="images a step (64)")
    add("--lr", type=_rate, default=4e-3, help="peak learning rate of AdamW (0.004, made for mpvg_vit_nano)")
    add("--img-size", type=_positive, metavar="PIXELS", help="resize all images to this side (as they are)")
    add("--out", type=Path, metavar="DIR", help="folder for results; finished runs are kept (runs/compare-DATA-MODEL)")
    add("--overwrite", action="store_true", help="begin anew where the folder holds another configuration")
    add("--workers", type=_positive, default=os.cpu_count() or 1, metavar="N", help="processes (one a core)")
    return parser


def _positive(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number from 1 to 999999")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return rate


def _fail(message: object, *, code: int) -> int:
    print("mpvg: " + " ".join(str(message).split()), file=sys.stderr)
    return code
