"""The command line: which command, and how each error ends."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

import torch

from mpvg import __version__
from mpvg.commands import analyze, bench, compare, cost, export, models, share
from mpvg.commands.options import Parser, need
from mpvg.errors import RunError, UserError

_OTHERS_WAIT = 10  # seconds: processes start that far apart at most
_TRAIN = ("lightning", "torchmetrics", "tensorboard")
_EXAMPLES = """examples:
  mpvg compare --data my_images/ --img-size 32    which scheme suits my images?
  mpvg fit --data my_images/ --img-size 32 --model.scheme mpvg
  mpvg fit --data my_images/ --img-size 224 --model.name vit_small_patch16_224.augreg_in21k --model.pretrained true
  mpvg test --ckpt runs/fit/best.ckpt
  mpvg predict --ckpt runs/fit/best.ckpt photo.png
  mpvg export runs/fit/best.ckpt --fold           for onnxruntime
  mpvg share runs/fit/best.ckpt my_model          for timm and the Hub
  mpvg analyze runs/fit/best.ckpt --out look      what do its position embeddings do?
  mpvg cost                                       what do schemes cost, counted?
  mpvg bench --mode eager,compile                 and measured, beside timm's own models?

Each command has a --help of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for bad input, 3 for a run that failed."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        return _fail(error, code=2)
    except RunError as error:
        return _fail(error, code=3)
    except torch.OutOfMemoryError as error:
        return _fail(f"{str(error).splitlines()[0]} Take a smaller batch, or fewer --workers.", code=3)
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        return _fail("there is not enough memory for this: take a smaller batch or smaller images.", code=3)
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, or a file that cannot be written
        file = error.filename2 or error.filename or "a file"
        remedy = "make room, or name another place. What was finished is kept"
        return _fail(f"{file} cannot be used ({error.strerror}): {remedy}.", code=2)
    except KeyboardInterrupt as error:
        stopped = "stopped; what was finished is kept, and the same command goes on from there."
        return _fail(str(error) or stopped, code=130)


def _run(words: list[str]) -> int:
    if words and words[0] in _WITH_YAML:
        needed, run, _ = _WITH_YAML[words[0]]
        need(words[0], (*needed, "jsonargparse"), extra="train")
        return run(words[1:])
    arguments = _parser().parse_args(words)
    exit_code: int = arguments.run(arguments)
    return exit_code


def _fit(words: Sequence[str]) -> int:
    from mpvg.train.fit import run_fit

    return run_fit(words)


def _test(words: Sequence[str]) -> int:
    from mpvg.train.testing import run_test

    return run_test(words)


def _predict(words: Sequence[str]) -> int:
    from mpvg.commands.predict import run

    return run(words)


_WITH_YAML: dict[str, tuple[tuple[str, ...], Callable[[Sequence[str]], int], str]] = {
    "fit": (_TRAIN, _fit, "train one model; options and YAML files of Lightning's command line"),
    "test": (_TRAIN, _test, "test a checkpoint"),
    "predict": ((), _predict, "name or embed image files with a checkpoint"),
}


def _parser() -> Parser:
    parser = Parser(
        prog="mpvg",
        description="Position schemes for vision transformers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mpvg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    compare.add_parser(commands)
    for name, (_, _, help_text) in _WITH_YAML.items():
        commands.add_parser(name, help=help_text, add_help=False)
    export.add_parser(commands)
    share.add_parser(commands)
    analyze.add_parser(commands)
    cost.add_parser(commands)
    bench.add_parser(commands)
    models.add_parser(commands)
    return parser


def _fail(message: object, *, code: int) -> int:
    line, rank = " ".join(str(message).split()), _rank()
    if rank != "0":  # a launcher ends this process once the first one has said the same
        parent, until = os.getppid(), time.monotonic() + _OTHERS_WAIT
        while time.monotonic() < until:
            if os.getppid() != parent:  # the first process was the launcher
                return code
            time.sleep(0.1)
        line = f"process {rank}: {line}"
    print("mpvg: " + line, file=sys.stderr)
    return code


def _rank() -> str:
    """Return which of several processes this is, as torchrun, Lightning or srun tells it."""
    told = (os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ)
    return next(told, "0")
