"""`mpvg export`: a checkpoint as a file that other programs read, compared with the model before it is kept."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpvg.checkpoint import Card, load_model, resize
from mpvg.commands.options import need, positive
from mpvg.errors import RunError, UserError
from mpvg.export import BATCH, INPUT, OUTPUT, write_onnx, write_safetensors, write_torch_export
from mpvg.fold import fold

_LARGEST_DIFFERENCE = 1e-4  # of the largest output
_EXAMPLES = """examples:
  mpvg export runs/fit/best.ckpt --fold --dynamic-batch
  mpvg export runs/fit/best.ckpt --format torch_export --img-size 64 48
  mpvg export runs/fit/best.ckpt --format safetensors --fold --out small.safetensors"""

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """How a format's files end, and how to read one as a function of images."""

    suffix: str
    read: Callable[[Path], Model]


def _read_onnx(path: Path) -> Model:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _read_torch_export(path: Path) -> Model:
    return torch.export.load(path).module()


def _read_safetensors(path: Path) -> Model:
    model: Model = load_model(path)[1]
    return model


_FORMATS = {
    "onnx": Format(".onnx", _read_onnx),
    "torch_export": Format(".pt2", _read_torch_export),
    "safetensors": Format(".safetensors", _read_safetensors),
}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write a checkpoint for onnxruntime, torch.export or safetensors",
        description="Write a checkpoint as a file that other programs read. Class names, mean, deviation and size of "
        "the images go with it, and its outputs are compared with the model's before it is kept.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("ckpt", metavar="CKPT", type=Path, help="a .ckpt or .safetensors of mpvg fit or mpvg export")
    add("--format", choices=_FORMATS, default="onnx", help="onnx, torch_export (.pt2) or safetensors (onnx)")
    add("--fold", action="store_true", help="store the positions and drop their norms: the same outputs, less work")
    add("--dynamic-batch", action="store_true", help="take any number of images at a time (one)")
    add(
        "--img-size",
        nargs="+",
        type=positive,
        metavar="PIXELS",
        help="side, or height and width, of the images (those of the training)",
    )
    add("--out", type=Path, metavar="FILE", help="the file, or a folder for it (beside the checkpoint)")
    add("--json", action="store_true", help="print what was written as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run `mpvg export` and return its exit code."""
    if arguments.format == "onnx":
        need("export", ("onnx", "onnxruntime", "onnxscript"), extra="export")
    if arguments.format == "safetensors" and arguments.dynamic_batch:
        raise UserError("--dynamic-batch is not for --format safetensors, where weights have no batch: leave it out.")
    size = _size(arguments.img_size)
    source = arguments.ckpt.expanduser()
    card, model = load_model(source)
    changed = size is not None and size != card.preprocessing.size
    if size is not None and changed:
        card = resize(card, model, size)
    card = replace(card, folded=card.folded or arguments.fold)
    out = _out(arguments, source, card, changed=changed)
    with _draft(out) as draft:
        _write(fold(model) if card.folded else model, card, draft, arguments)
        difference = _difference(model, card, draft, arguments)
        if not difference <= _LARGEST_DIFFERENCE:  # nor where it is no number
            raise RunError(
                f"{out} was not kept: its outputs differ from the model's by {difference:.1e} of the largest, more "
                f"than {_LARGEST_DIFFERENCE:.0e}. Try another --format."
            )
    _report(out, card, difference, arguments)
    return 0


def _size(given: list[int] | None) -> tuple[int, int] | None:
    if given is None:
        return None
    if len(given) > 2:
        raise UserError(f"--img-size {' '.join(map(str, given))}: give one side, or height and width.")
    return given[0], given[-1]


def _out(arguments: argparse.Namespace, source: Path, card: Card, *, changed: bool) -> Path:
    """Return the file to write, after a look at what stands in its place."""
    suffix = _FORMATS[arguments.format].suffix
    name = source.stem + ("-folded" if arguments.fold and "-folded" not in source.stem else "")
    if changed:
        name += "-{}x{}".format(*card.preprocessing.size)
    out: Path = source.parent if arguments.out is None else arguments.out.expanduser()
    if out.is_dir():
        out /= name + suffix
    if out.suffix != suffix:
        raise UserError(f"--out {out}: files of --format {arguments.format} end in {suffix}, name one.")
    if out.exists() and out.samefile(source):
        raise UserError(f"{out} is the checkpoint itself, which is not written over: name another file with --out.")
    return out


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """Yield a file to write to, which becomes `out` where all goes well; says before the work if it cannot."""
    draft = out.with_name(f".{out.stem}.{os.getpid()}{out.suffix}")
    try:
        if out.exists() and not os.access(out, os.W_OK):
            raise PermissionError(None, "it is read-only")
        draft.touch()
        try:
            yield draft
            os.replace(draft, out)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}): make its folder or room in it, or name another file with "
            "--out."
        ) from error


def _write(model: Any, card: Card, path: Path, arguments: argparse.Namespace) -> None:
    texts = card.as_texts()
    if arguments.format == "safetensors":
        write_safetensors(model, path, metadata=texts)
        return
    write = write_onnx if arguments.format == "onnx" else write_torch_export
    input_size = (card.preprocessing.channels, *card.preprocessing.size)
    write(model, path, input_size=input_size, dynamic_batch=arguments.dynamic_batch, metadata=texts)


def _difference(model: Any, card: Card, path: Path, arguments: argparse.Namespace) -> float:
    """Return max|difference| / max|output| between a file and the model, itself not folded, on random images."""
    written = _FORMATS[arguments.format].read(path)
    generator, found = torch.Generator().manual_seed(0), []
    for batch in (1, 3) if arguments.dynamic_batch else (1,):
        images = torch.randn(batch, card.preprocessing.channels, *card.preprocessing.size, generator=generator)
        with torch.no_grad():
            expected, actual = model(images), written(images)
        found.append(((actual - expected).abs().max() / expected.abs().max()).item())
    return max(found)


def _report(out: Path, card: Card, difference: float, arguments: argparse.Namespace) -> None:
    batch = BATCH if arguments.dynamic_batch or arguments.format == "safetensors" else 1
    result = {
        "file": str(out),
        "format": arguments.format,
        "folded": card.folded,
        "megabytes": round(out.stat().st_size / 1e6, 3),
        "inputs": {INPUT: [batch, card.preprocessing.channels, *card.preprocessing.size]},
        "outputs": {OUTPUT: [batch, len(card.classes)]},
        "largest_difference": difference,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    takes, gives = (
        ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in ports.items())
        for ports in (result["inputs"], result["outputs"])
    )
    print(
        f"{out}: {result['megabytes']} MB, {takes} to {gives}, differs from the model by at most {difference:.1e} of "
        "the largest output."
    )
