"""Checkpoints that carry all that prediction needs: the weights, and a card that tells how to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import torch
from safetensors.torch import save
from torch import Tensor

from mpvg.create import build, check_name
from mpvg.data.preprocessing import Preprocessing
from mpvg.errors import UserError
from mpvg.files import write_atomically
from mpvg.fold import fold
from mpvg.train.build import check_build, check_scheme, model_arguments
from mpvg.weight_files import CARD, read_file, weights_of_fit

if TYPE_CHECKING:  # they need what only their tasks need
    from mpvg.dense.card import DenseCard
    from mpvg.sequence_card import SequenceCard

CLASSIFICATION = "classification"
OF_SEQUENCES = ("text", "series")
AnyCard = Union["Card", "DenseCard", "SequenceCard"]


@dataclass(frozen=True)
class Card:
    """How to rebuild a model and what its numbers mean; JSON-able.

    Args:
        model: Name, ours or timm's.
        scheme: Canonical text of the position scheme.
        arguments: Further arguments of `mpvg.create.build`.
        preprocessing: What the images went through.
        classes: Names in the order of the outputs.
        data: Arguments of the data that it was trained on.
        folded: Whether the weights are those of the folded model.
        ema: Whether the weights to use are the moving average of those that were trained.
    """

    model: str
    scheme: str
    arguments: dict[str, Any]
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    data: dict[str, Any]
    folded: bool = False
    ema: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_texts(self) -> dict[str, str]:
        """Return the card for a file's metadata, and under plain names what a program without mpvg needs of it."""
        seen = self.preprocessing
        plain = {
            "classes": self.classes,
            "mean": seen.mean,
            "std": seen.std,
            "input_size": (seen.channels, *seen.size),
        }
        return {CARD: json.dumps(self.as_dict()), **{name: json.dumps(value) for name, value in plain.items()}}

    @classmethod
    def from_dict(cls, card: Mapping[str, Any]) -> Card:
        """Return the card that `as_dict` gave, after a way through JSON or not."""
        seen, arguments, classes = card["preprocessing"], dict(card["arguments"]), tuple(card["classes"])
        height, width = seen["size"]
        preprocessing = Preprocessing(
            (height, width),
            seen["channels"],
            tuple(seen["mean"]),
            tuple(seen["std"]),
            seen.get("crop"),  # older cards do not say
            seen.get("interpolation", "bicubic"),
        )
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
            bool(card.get("folded", False)),  # older cards do not say
            bool(card.get("ema", False)),
        )

    def build(self) -> Any:
        """Create the model, with weights still to be loaded."""
        model = build(self.model, self.scheme, **self.arguments)
        return fold(model) if self.folded else model


def save_safetensors(path: Path, card: AnyCard, model: torch.nn.Module) -> None:
    """Write a model's weights and card.

    Args:
        path: The file; one already there is replaced in one step.
        card: The model's card.
        model: The model.

    Raises:
        OSError: The file cannot be written.
    """
    save_weights(path, model, {CARD: json.dumps(card.as_dict())})


def save_weights(path: Path, model: torch.nn.Module, metadata: Mapping[str, str]) -> None:
    """Write a model's state dict as a .safetensors file.

    Args:
        path: The file; one already there is replaced in one step.
        model: The model.
        metadata: Texts that go with it.

    Raises:
        OSError: The file cannot be written.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, save(weights, dict(metadata)))


def read_checkpoint(path: str | Path, *, ema: bool | None = None) -> tuple[AnyCard, dict[str, Tensor]]:
    """Read a checkpoint of `mpvg fit`: a .ckpt or a .safetensors file; code in it is never run.

    Args:
        path: The file.
        ema: Whether to take the moving average of the weights; None where the training evaluated that.

    Returns:
        The card and the model's state dict.

    Raises:
        UserError: The file is missing, damaged, holds code, or is no checkpoint of mpvg.
    """
    path = Path(path).expanduser()
    found, content, is_ckpt = _read_card(path)
    try:
        card = card_from_dict(found)
    except (KeyError, TypeError, ValueError) as error:
        raise _unusable(path, error) from error
    if is_ckpt:
        return card, weights_of_fit(content, ema=ema, what=str(path))
    if ema is not None and ema != card.ema:
        kept = "the moving average of its weights" if card.ema else "no moving average of its weights"
        raise UserError(f"{path} keeps {kept} alone: name the .ckpt beside it, or leave --ema out.")
    return card, content


def task_of(path: str | Path) -> str:
    """Return what the model of a checkpoint was trained for.

    Args:
        path: A .ckpt or .safetensors file of `mpvg fit`.

    Raises:
        UserError: The file is missing, damaged, holds code, or is no checkpoint of mpvg.
    """
    return str(_read_card(Path(path).expanduser())[0].get("task", CLASSIFICATION))


def card_from_dict(found: Mapping[str, Any]) -> AnyCard:
    """Return the card of a model for any task, after a way through JSON or not."""
    task = found.get("task", CLASSIFICATION)
    if task == CLASSIFICATION:
        return Card.from_dict(found)
    if task in OF_SEQUENCES:
        from mpvg.sequence_card import SequenceCard

        return SequenceCard.from_dict(found)
    from mpvg.dense.card import DenseCard

    return DenseCard.from_dict(found)


def _read_card(path: Path) -> tuple[Mapping[str, Any], Any, bool]:
    """Return a file's card, all else in it, and whether it is a .ckpt of Lightning."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} is no file: name a .ckpt or .safetensors that mpvg fit wrote.")
    content, texts = read_file(path)
    of_ckpt = content.get(CARD) if isinstance(content, Mapping) else None
    try:
        found = json.loads(texts[CARD]) if CARD in texts else of_ckpt
    except ValueError as error:
        raise _unusable(path, error) from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} has no card of mpvg: it is not a checkpoint that mpvg fit wrote.")
    return found, content, CARD not in texts


def _unusable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} has a card that this version of mpvg cannot use ({error}).")


def load_model(path: str | Path, *, ema: bool | None = None) -> tuple[Card, Any]:
    """Rebuild the classifier of images in a checkpoint, in eval mode; arguments are those of `load_any`.

    Raises:
        UserError: The checkpoint cannot be used, or is of another task.
    """
    card, model = load_any(path, ema=ema)
    if not isinstance(card, Card):
        others = f"use mpvg {'analyze' if card.task in OF_SEQUENCES else 'test or mpvg predict'}"
        raise UserError(f"{path} is a checkpoint of {card.task}, and this is for classification of images: {others}.")
    return card, model


def load_any(path: str | Path, *, ema: bool | None = None) -> tuple[AnyCard, Any]:
    """Rebuild a checkpoint's model, in eval mode.

    Args:
        path: A .ckpt or .safetensors file of `mpvg fit`.
        ema: As for `read_checkpoint`.

    Returns:
        The card and the model.

    Raises:
        UserError: The checkpoint cannot be used.
    """
    card, weights = read_checkpoint(path, ema=ema)
    try:
        model = card.build()
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the weights do not fit {card.model} under scheme {card.scheme!r} ({error})."
        ) from error
    return card, model.eval()


def resize(card: Card, model: Any, size: tuple[int, int]) -> Card:
    """Fit a checkpoint's model for images of another size; its patches and windows stay as large as they were.

    Args:
        card: Its card.
        model: The model, changed in place.
        size: Height and width in pixels.

    Returns:
        The card of the model at that size.

    Raises:
        UserError: The model cannot take that size, or is folded.
    """
    if card.folded:
        raise UserError(
            f"--img-size {size[0]} {size[1]}: a folded model has one size, {card.preprocessing.size[0]} x "
            f"{card.preprocessing.size[1]}. Resize the checkpoint that it was folded from."
        )
    windows = {"window_size": model.windows[0]} if hasattr(model, "windows") else {}
    chosen_by_size = {"patch_size": model.patch_embed.patch_size, **windows}  # in vit_nano the patches, in Swin both
    arguments = {**chosen_by_size, **card.arguments, "img_size": size}
    check_build(card.model, card.scheme, arguments)
    model.set_input_size(img_size=size, **{name: arguments[name] for name in windows})
    of_data = {**card.data, "img_size": size[0] if size[0] == size[1] else None}
    return replace(card, arguments=arguments, preprocessing=replace(card.preprocessing, size=size), data=of_data)
