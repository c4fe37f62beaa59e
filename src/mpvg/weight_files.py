"""Files of weights: safetensors or PyTorch's own, read without running what is in them."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mpvg.errors import UserError

CARD: Final = "mpvg"  # under which our own files hold their card
MODEL, AVERAGE = "model.", "ema.module."  # before the names of weights, and of their average, in a .ckpt of ours
SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
WRAPPERS: Final = ("state_dict_ema", "model_ema", "model", "state_dict")  # under which training scripts put the weights
PREFIXES: Final = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile and Lightning
_IN_FOLDERS: Final = (
    "model.safetensors", "best.safetensors", "best.ckpt", "last.ckpt",
    "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict; code in the file is never run.

    Args:
        path: A .safetensors file, one that `torch.save` wrote (.pth, .pt, .ckpt, .bin), or a folder with one: of
            `mpvg.save`, of timm, or of `mpvg fit`.

    Returns:
        Weights by name, without what wrappers put around them.

    Raises:
        UserError: There is no such file, it is damaged, holds something else, or a weight is NaN or infinite.
    """
    path = find_weights(Path(path).expanduser())
    content, _ = read_file(path)
    if isinstance(content, Mapping) and isinstance(content.get(CARD), Mapping):
        content = weights_of_fit(content, what=str(path))
    return unwrap(content, what=str(path))


def weights_of_fit(content: Mapping[str, Any], *, ema: bool | None = None, what: str) -> dict[str, Tensor]:
    """Return the weights in a .ckpt of `mpvg fit`.

    Args:
        content: What the file holds.
        ema: Whether to take the moving average; None where the training evaluated that.
        what: The file, for the message.

    Raises:
        UserError: An average is asked for that was not kept.
    """
    average = bool(content.get(CARD, {}).get("ema")) if ema is None else ema
    prefix = AVERAGE if average else MODEL
    weights = content.get("state_dict", {})
    found = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
    if average and not found:
        raise UserError(
            f"{what} keeps no moving average of its weights: train with --model.recipe.ema_decay, or leave --ema out."
        )
    return found


class Origin(NamedTuple):
    """What is known of the images that weights were trained on.

    image_size: Height and width in pixels, or None.
    normalisation: Mean and deviation of each channel, or None.
    """

    image_size: tuple[int, int] | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def read_origin(path: str | Path) -> Origin:
    """Return what stands in or beside a file of weights: the card of `mpvg fit`, or timm's configuration.

    Args:
        path: As for `read_weights`.
    """
    path = find_weights(Path(path).expanduser())
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(CARD)
            card = None if text is None else json.loads(text)
        else:
            card = read_file(path)[0].get(CARD)
        if card is not None:
            found = card["preprocessing"]
            height, width = found["size"]
        else:
            found = json.loads((path.parent / "config.json").read_text())["pretrained_cfg"]
            _, height, width = found["input_size"]
        return Origin((int(height), int(width)), (tuple(found["mean"]), tuple(found["std"])))
    except (OSError, KeyError, TypeError, ValueError, AttributeError):  # nothing does
        return Origin()


def unwrap(content: Any, *, what: str) -> dict[str, Tensor]:
    """Return the state dict in what a file holds.

    Args:
        content: What the file holds.
        what: The file, for the message.

    Returns:
        Weights by name, without what wrappers put around them.

    Raises:
        UserError: It holds something else, or a weight is NaN or infinite.
    """
    path, wrapped = what, content
    while isinstance(wrapped, Mapping):
        content, inner = wrapped, [wrapped[name] for name in WRAPPERS if isinstance(wrapped.get(name), Mapping)]
        wrapped = inner[0] if inner else None
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds {_what(content)}, and no weights by name: use a saved state dict.")
    weights = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if len(weights) < len(content):
        other = next(name for name in content if name not in weights)
        raise UserError(
            f"{path} holds {_what(content[other])} under {other!r} beside {len(weights)} tensors: use a saved state "
            "dict."
        )
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    check_finite(weights, what=what)
    return weights


def check_finite(weights: Mapping[str, Tensor], *, what: str) -> None:
    """Refuse weights that are lost.

    Args:
        weights: By name.
        what: Where they are, for the message.

    Raises:
        UserError: One is NaN or infinite.
    """
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{what} has weights that are NaN or infinite, in {len(broken)} of {len(weights)} tensors ({broken[0]} is "
            "the first): use weights from before the loss was lost."
        )


def hash_of_weights(pretrained: str | Path | bool) -> str | None:
    """Return a short hash of a file of weights; None where there is no file.

    Args:
        pretrained: As `mpvg.create_model` takes it.
    """
    if isinstance(pretrained, bool) or not Path(pretrained).expanduser().exists():  # timm's name of some
        return None
    return hashlib.sha256(find_weights(Path(pretrained).expanduser()).read_bytes()).hexdigest()[:16]


def find_weights(path: Path) -> Path:
    """Return the file of weights that a path names: itself, or the one in a folder.

    Args:
        path: A file or a folder.

    Raises:
        UserError: There is none.
    """
    if path.is_dir():
        found = [path / name for name in _IN_FOLDERS if (path / name).is_file()]
        found = found or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not found:
            raise UserError(f"{path} is a folder without weights: it should hold one of {', '.join(_IN_FOLDERS)}.")
        return found[0]
    if not path.is_file():
        raise UserError(f"{path} is no file: name a file of weights ({', '.join(SUFFIXES)}) or a folder with one.")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is no file of weights by its ending: use one of {', '.join(SUFFIXES)}.")
    return path


def read_file(path: Path) -> tuple[Any, dict[str, str]]:
    """Return what a file holds, and the texts that go with it; code in it is never run.

    Args:
        path: A .safetensors file, or one that `torch.save` wrote.

    Raises:
        UserError: It is damaged, something else, or holds objects that could run code.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names: list[str] = file.keys()
                return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # what torch warns of is told below, or no fault
            return torch.load(path, map_location="cpu", weights_only=True), {}  # training scripts add their options
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds pickled objects other than tensors, which could run code, and was not read: use "
            ".safetensors, or a state dict saved by torch.save."
        ) from error
    except SafetensorError as error:
        raise UserError(
            f"{path} cannot be read as .safetensors ({error}): it is half-written, damaged or something else. Copy it "
            "again."
        ) from error
    except Exception as error:  # torch.load raises nearly anything on a file that is something else
        if isinstance(error, OSError) and error.filename:
            raise  # it cannot be opened; without a name, torch has sought beyond the end of half a file
        said = " ".join(str(error).partition(". ")[0].split())
        if "TorchScript" in said:
            raise UserError(f"{path} holds a TorchScript program, no weights: save its state_dict().") from error
        raise UserError(
            f"{path} cannot be read as a checkpoint ({said if ' ' in said else type(error).__name__}): it is "
            "half-written, damaged or something else. Copy it again."
        ) from error


def _what(value: object) -> str:
    name = type(value).__name__
    return "nothing" if value is None or value == {} else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
