"""A model for given images, or one line on why there is none."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import timm

from mpvg.create import build
from mpvg.errors import UserError, nearest
from mpvg.models.architectures import own_classifiers
from mpvg.scheme import PositionScheme
from mpvg.train.freezing import freeze

MOST_TOKENS = 4096  # that attend to each other: the work is quadratic in them


def check_registered(model: str) -> str:
    """Return the name of a model that this library registers, with a classifier.

    Args:
        model: What the user gave.

    Raises:
        UserError: There is no such model.
    """
    known = own_classifiers()
    if model not in known:
        raise UserError(f"model {model!r} is unknown{nearest(model, known)}: use one of {', '.join(known)}.")
    return model


def check_scheme(scheme: str) -> str:
    """Return the canonical text of a scheme.

    Args:
        scheme: Name or text, as the user gave it.

    Raises:
        UserError: There is no such scheme.
    """
    try:
        return str(PositionScheme.parse(scheme.strip()))
    except ValueError as error:
        raise UserError(str(error)) from error


def own_size(model: str) -> tuple[int, int]:
    """Return the size of the images that a registered model was made for.

    Args:
        model: Registered name.

    Returns:
        Height and width in pixels.
    """
    _, height, width = timm.create_model(model, device="meta").default_cfg["input_size"]
    return height, width


def model_arguments(size: tuple[int, int], channels: int, classes: int) -> dict[str, Any]:
    """Return what `timm.create_model` must know of the images.

    Args:
        size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        classes: Number of classes.

    Returns:
        Its keyword arguments.
    """
    return {"img_size": size, "in_chans": channels, "num_classes": classes}


def own_arguments(model: str) -> set[str]:
    """Return the names of all arguments that a model's constructors take."""
    kinds: Any = type(timm.create_model(model, device="meta")).__mro__
    return {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}


def _named(error: Exception, known: Iterable[str]) -> str:
    """Return an error's words; of an argument that there is not, with the nearest one."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return f"it has no argument {unknown[1]!r}{nearest(unknown[1], known)}." if unknown else str(error)


def check_build(model: str, scheme: str, arguments: Mapping[str, Any], *, trains: str = "all") -> str:
    """Check that a model can be built with these arguments and under this scheme, and trained.

    Args:
        model: Registered name.
        scheme: Position scheme.
        arguments: Of `timm.create_model`, those of the images among them.
        trains: What of it is to be trained, as a recipe says.

    Returns:
        Canonical text of the scheme that it means in this model's family.

    Raises:
        UserError: There is no such model, or nothing of it to train, with the remedy.
    """
    (height, width), own = arguments["img_size"], own_size(model)
    try:
        built = build(model, scheme, device="meta", **arguments)
    except (TypeError, ValueError) as error:
        at_own_size = {**arguments, "img_size": own}
        try:
            fits = build(model, scheme, device="meta", **at_own_size)
        except (TypeError, ValueError):  # then it is not the size
            raise UserError(f"{model} under {scheme}: {_named(error, own_arguments(model))}") from error
        step = max(fits.size_step())
        better = max(step, round(max(height, width) / step) * step)
        raise UserError(f"{model}: {error} Resize them with --img-size {better}, say.") from error
    tokens = built.largest_attention()
    if tokens > MOST_TOKENS:
        raise UserError(
            f"images of {height} x {width} pixels are {tokens:,} patches for {model}, more than {MOST_TOKENS:,}: "
            f"resize them with --img-size {own[0]}, say, or take a model of larger patches."
        )
    freeze(built, trains)
    return str(built.scheme)
