"""`mpvg bench`: what a scheme costs, measured side by side with the model that one would use instead."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Collection, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mpvg.bench.entries import VARIANTS, check_entries, entries, reference
from mpvg.bench.heats import COLUMNS, Heat, Measured, measure, merged
from mpvg.bench.turns import FEWEST_ROUNDS, is_quiet
from mpvg.bench.work import MODES, Task
from mpvg.commands.options import check_writable, device, need, positive, split_schemes
from mpvg.cost.examples import SEQUENCES
from mpvg.errors import UserError, nearest
from mpvg.files import as_csv, write_atomically
from mpvg.train.build import check_build, check_registered, own_size

if TYPE_CHECKING:
    from rich.console import Console

_MODELS = ["mpvg_deit_tiny_patch16_224", "mpvg_deit_small_patch16_224", "mpvg_deit_base_patch16_224"]
_EXAMPLES = """examples:
  mpvg bench                                       DeiT-Ti, -S and -B beside timm's own, inference
  mpvg bench --mode eager,compile,onnx --batch 1,32 --schemes mpvg,default --csv bench.csv
  mpvg bench --train --batch 32 --models mpvg_deit_tiny_patch16_224
  mpvg bench --models mpvg_vit_lite_7_4_32 --against default
  mpvg bench --self-test                           is this machine quiet enough?

A round runs the model that others are measured against, the same model built a second time, and each of the others, in
a new order. The ratio is the median over rounds, with a 95 % interval. Where the model beside itself is not 1.00, no
ratio is given."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure what a scheme costs beside the model one would use instead",
        description="Measure what a scheme costs beside the model one would use instead.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--models", nargs="+", default=_MODELS, metavar="NAME", help="registered models (the three DeiTs)")
    add("--schemes", default="mpvg", metavar="A,B", help="position schemes (mpvg)")
    add(
        "--against",
        default="timm",
        metavar="MODEL",
        help="timm for its model of the same architecture, a scheme for the same model under that, or NAME[:SCHEME] "
        "(timm)",
    )
    add("--mode", default="eager", metavar="A,B", help="eager, compile, onnx (eager)")
    add("--batch", default="1,32", metavar="N,M", help="images at a time (1,32)")
    add("--train", action="store_true", help="a training step: forward, backward, AdamW; otherwise inference")
    add("--variants", metavar="A,B", help="folded, unfolded (both for inference; a model is trained unfolded)")
    add("--img-size", type=positive, metavar="PIXELS", help="side of the images (the model's own)")
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="(float32)")
    add("--rounds", type=positive, default=100, metavar="N", help="at most so many a measurement (100)")
    add("--seconds", type=positive, default=60, metavar="S", help="begin no round after so many (60)")
    add("--builds", type=positive, default=3, metavar="N", help="build the models anew so many times on the way (3)")
    add("--no-memory", action="store_true", help="leave out peak memory, measured in fresh processes")
    add("--self-test", action="store_true", help="only the models of --against, each beside itself")
    add("--threads", type=positive, metavar="N", help="of the processor (as PyTorch has it)")
    add("--device", type=device, default="cpu", help="auto, cpu, cuda or cuda:N (cpu)")
    add("--graphs", action="store_true", help="on a GPU, replay CUDA graphs")
    add("--csv", type=Path, metavar="FILE", help="add the results to FILE; of what was measured before, the old goes")
    add("--json", action="store_true", help="print the results as JSON; all else goes to standard error")


def run(arguments: argparse.Namespace) -> int:
    need("bench", ("rich",), extra="compare")
    from rich.console import Console

    heats = list(_heats(arguments))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    file = arguments.csv and arguments.csv.expanduser()
    before = _read(file) if file else []
    rows: list[dict[str, Any]] = []
    try:
        for measured in _measured(heats, arguments, Console(stderr=arguments.json)):
            rows += measured.rows()
            if file:
                write_atomically(file, as_csv(merged(before, rows)))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("stopped" + (f"; what was measured is in {file}." if file else ".")) from error
    if arguments.json:
        print(json.dumps(rows, indent=1))
    return 0


def _measured(heats: list[Heat], arguments: argparse.Namespace, console: Console) -> Iterator[Measured]:
    """Run the heats, and tell of each."""
    from mpvg.console import progress_bar, say

    with progress_bar(console, "rounds", auto_refresh=False) as bar:  # drawn between turns, not during one
        for number, heat in enumerate(heats, start=1):
            part = bar.add_task(f"{number} of {len(heats)}", total=arguments.rounds)

            def draw(done: int, part: Any = part) -> None:
                bar.update(part, completed=done, refresh=True)

            found = measure(
                heat,
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                builds=arguments.builds,
                memory=not arguments.no_memory,
                after_round=draw,
            )
            bar.remove_task(part)
            for line in _lines(found):
                say(bar.console, line)
            yield found


def _lines(found: Measured) -> Iterator[str]:
    """Yield what came of a heat, in words."""
    noise = "{:.3f} ({:.3f} to {:.3f})".format(*found.noise)
    yield f"{found.heat}: {found.milliseconds[0]:.1f} ms, beside itself {noise}, {found.rounds} rounds"
    if not is_quiet(found.noise):
        yield "  too noisy to tell: nothing else should run on this machine, or take more --rounds and --seconds."
    elif not found.ratios:
        yield "  quiet enough."
    for contestant, ratio, milliseconds, peak in zip(
        found.heat.contestants, found.ratios, found.milliseconds[1:], found.peaks[1:], strict=False
    ):
        memory = f"   memory {peak / found.peaks[0]:.3f}" if peak and found.peaks[0] else ""
        told = f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
        yield f"  {contestant.variant:18} {milliseconds:>8.1f} ms   {told}{memory}"
    if found.problem:
        yield f"  {found.problem}"


def _heats(arguments: argparse.Namespace) -> Iterator[Heat]:
    """Yield what the options ask for, all checked."""
    modes = _listed("--mode", arguments.mode, MODES)
    variants = _variants(arguments)
    batches = _batches(arguments.batch)
    _check_means(arguments, modes)
    size = (arguments.img_size, arguments.img_size) if arguments.img_size else None
    schemes = [] if arguments.self_test else split_schemes(arguments.schemes)
    if SEQUENCES in arguments.models:
        raise UserError(f"--models {SEQUENCES}: sequences are not measured: leave it out, or count it with mpvg cost.")
    for model in map(check_registered, arguments.models):
        against = reference(model, arguments.against)
        built = {"img_size": size or own_size(model)}
        found = [each for scheme in schemes for each in entries(model, check_build(model, scheme, built), variants)]
        check_entries([against, *found], size)
        for mode, batch in product(modes, batches):
            task = Task(mode, arguments.train, batch, size, arguments.device, arguments.precision, arguments.graphs)
            yield Heat(task, against, tuple(found))


def _check_means(arguments: argparse.Namespace, modes: Collection[str]) -> None:
    """Refuse what this machine or the modes cannot do."""
    on_gpu = arguments.device != "cpu"
    if "onnx" in modes:
        need("bench --mode onnx", ("onnx", "onnxruntime", "onnxscript"), extra="export")
        if arguments.train or on_gpu or arguments.precision != "float32":
            raise UserError("--mode onnx is inference on the processor in float32: leave onnx out of --mode.")
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if "compile" in modes and not on_gpu and not shutil.which(compiler):
        raise UserError(f"--mode compile needs a C++ compiler: install {compiler}, or leave compile out.")
    if arguments.graphs and not on_gpu:
        raise UserError("--graphs are CUDA's: give --device cuda, or leave --graphs out.")
    if arguments.rounds < FEWEST_ROUNDS:
        raise UserError(f"--rounds {arguments.rounds}: an interval needs at least {FEWEST_ROUNDS}.")


def _variants(arguments: argparse.Namespace) -> list[str]:
    if not arguments.train:
        return _listed("--variants", arguments.variants or ",".join(VARIANTS), VARIANTS)
    if "folded" in (arguments.variants or ""):
        raise UserError(f"--variants {arguments.variants}: a folded model is for inference, leave out --train.")
    return ["unfolded"]


def _listed(option: str, text: str, known: Collection[str]) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in known:
            raise UserError(f"{option} {word!r} is unknown{nearest(word, known)}: use one of {', '.join(known)}.")
    return words


def _batches(text: str) -> list[int]:
    try:
        return [positive(word.strip()) for word in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--batch: {error}.") from error


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of earlier results; none where there is no such file yet."""
    check_writable("--csv", path)
    try:
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows: list[dict[str, Any]] = list(csv.DictReader(file))
            if any(tuple(row) != COLUMNS for row in rows):
                raise csv.Error("it holds something else")
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--csv {path} cannot be used ({error}): name another file.") from error
    return []
