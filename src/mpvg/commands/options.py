"""Option values that are checked as they are read."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import torch

from mpvg.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse, with errors that are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help.")


def need(command: str, modules: Iterable[str], *, extra: str) -> None:
    """Raise UserError where a command's modules are not installed; it names them and the extra that brings them."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UserError(f"mpvg {command} needs {', '.join(missing)}: pip install 'mpvg[{extra}]'.")


def need_dense(command: str) -> None:
    """Raise UserError where a command lacks what detection and segmentation need."""
    need(f"{command} of detection and segmentation", ("pycocotools", "transformers"), extra="dense")


def positive(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number from 1 to 999999")
    return int(text)


def whole(text: str) -> int:
    try:
        return 0 if text == "0" else positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(str(error).replace("from 1", "from 0")) from error


def split_schemes(text: str) -> list[str]:
    """Return the schemes of "A,B"; commas in "mpvg:last_norm=5,first_block=true" stay."""
    return re.split(r",(?!\s*\w+\s*=)", text)


def check_writable(option: str, file: Path) -> None:
    """Raise UserError where a file cannot be written, before anything is computed for it."""
    if file.is_dir():
        raise UserError(f"{option} {file} is a folder: name a file.")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise UserError(
            f"{option} {file} cannot be written, {file.parent} is no folder to write to: name another file."
        )


def rates(text: str) -> tuple[float, ...]:
    """Return one or more learning rates, ascending, of "0.001,0.002"."""
    return tuple(sorted({_number(part, 0, float("inf"), "a number above 0") for part in text.split(",")}))


def part(text: str) -> float:
    return _number(text, 0, 1, "a part between 0 and 1")


def _number(text: str, low: float, high: float, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = low
    if not low < number < high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def device(text: str) -> str:
    """Return a device that is there; "auto" is the first GPU, or else the processor."""
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")
    if text != "cpu" and int(text.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text!r} is not on this machine, which has {torch.cuda.device_count()} GPUs")
    return text
