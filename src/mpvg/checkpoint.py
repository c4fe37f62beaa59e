"""Checkpoints that carry all that prediction needs: the weights, and a card that tells how to use them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mpvg.data.preprocessing import Preprocessing
from mpvg.errors import UserError
from mpvg.files import write_atomically
from mpvg.train.build import check_name, check_scheme, model_arguments

CARD = "mpvg"  # the card's key in a checkpoint
MODULE = "model."  # what Lightning puts before our names


@dataclass(frozen=True)
class Card:
    """How to rebuild a model and what its numbers mean; JSON-able.

    Args:
        model: Registered name.
        scheme: Canonical text of the position scheme.
        arguments: Further arguments of `timm.create_model`.
        preprocessing: What the images went through.
        classes: Names in the order of the outputs.
        data: Arguments of the data that it was trained on.
    """

    model: str
    scheme: str
    arguments: dict[str, Any]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    data: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, card: Mapping[str, Any]) -> Card:
        """Return the card that `as_dict` gave, after a way through JSON or not."""
        seen, arguments, classes = card["preprocessing"], dict(card["arguments"]), tuple(card["classes"])
        height, width = seen["size"]
        preprocessing = Preprocessing((height, width), seen["channels"], tuple(seen["mean"]), tuple(seen["std"]))
        arguments["img_size"] = tuple(arguments["img_size"])  # a list, after a way through JSON
        of_images = model_arguments((height, width), len(seen["mean"]), len(classes))
        if not of_images.items() <= arguments.items() or not len(seen["mean"]) == len(seen["std"]) == seen["channels"]:
            raise ValueError(f"the model was built with {arguments}, and not for these images and classes: {of_images}")
        return cls(
            check_name(card["model"]),
            check_scheme(card["scheme"]),
            arguments,
            preprocessing,
            classes,
            dict(card["data"]),
        )

    def build(self) -> Any:
        """Create the model, with weights still to be loaded."""
        return timm.create_model(self.model, scheme=self.scheme, **self.arguments)


def save_safetensors(path: Path, card: Card, model: torch.nn.Module) -> None:
    """Write a model's weights and card.

    Args:
        path: The file; one already there is replaced in one step.
        card: The model's card.
        model: The model.

    Raises:
        OSError: The file cannot be written.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, save(weights, {CARD: json.dumps(card.as_dict())}))


def read_checkpoint(path: str | Path) -> tuple[Card, dict[str, Tensor]]:
    """Read a checkpoint of `mpvg fit`: a .ckpt or a .safetensors file; code in it is never run.

    Args:
        path: The file.

    Returns:
        The card and the model's state dict.

    Raises:
        UserError: The file is missing, damaged, holds code, or is no checkpoint of mpvg.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"checkpoint {path} is no file: name a .ckpt or .safetensors that mpvg fit wrote.")
    try:
        found, weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_ckpt(path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds pickled objects other than tensors, which could run code, and was not read: use a .ckpt or "
            ".safetensors that mpvg fit wrote."
        ) from error
    except Exception as error:  # torch.load raises nearly anything on a file that is something else
        raise UserError(f"{path} cannot be read as a checkpoint ({error}): it is damaged or something else.") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} has no card of mpvg: it is not a checkpoint that mpvg fit wrote.")
    try:
        return Card.from_dict(found), weights
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has a card that this version of mpvg cannot use ({error}).") from error


def load_model(path: str | Path) -> tuple[Card, Any]:
    """Rebuild a checkpoint's model, in eval mode.

    Args:
        path: A .ckpt or .safetensors file of `mpvg fit`.

    Returns:
        The card and the model.

    Raises:
        UserError: The checkpoint cannot be used.
    """
    card, weights = read_checkpoint(path)
    try:
        model = card.build()
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the weights do not fit {card.model} under scheme {card.scheme!r} ({error})."
        ) from error
    return card, model.eval()


def _read_safetensors(path: Path) -> tuple[Any, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        card = (file.metadata() or {}).get(CARD)
        names: list[str] = file.keys()
        return None if card is None else json.loads(card), {name: file.get_tensor(name) for name in names}


def _read_ckpt(path: Path) -> tuple[Any, dict[str, Tensor]]:
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, Mapping):
        return None, {}
    weights = checkpoint.get("state_dict", {})
    own = {name.removeprefix(MODULE): tensor for name, tensor in weights.items() if name.startswith(MODULE)}
    return checkpoint.get(CARD), own
