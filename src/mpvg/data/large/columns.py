"""Which columns of a table are the images and their labels, as Hugging Face's data sets write them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpvg.data.images import BadImageError
from mpvg.errors import UserError

_IMAGES = ("image", "img", "images", "jpg", "png", "webp", "picture")
_LABELS = ("label", "fine_label", "labels", "cls", "class", "target", "targets")


class Columns(NamedTuple):
    """The column of the images, that of the labels, and the names of the classes where the set has them."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def needed(module: str) -> Any:
    """Import a module of the extra [data], which only these containers need."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"this set needs {module.partition('.')[0]}: pip install 'mpvg[data]'.") from error


def find_columns(names: Sequence[str], features: Mapping[str, Any], source: str) -> Columns:
    """Return the columns of a table, by usual names, or by their only one of its kind.

    Args:
        names: Names of all columns.
        features: What the set says of its columns, as `datasets` writes it; may be empty.
        source: What to call the table in errors.

    Returns:
        The columns.

    Raises:
        UserError: There are no such columns.
    """
    image, label = _one(_IMAGES, "Image", names, features), _one(_LABELS, "ClassLabel", names, features)
    if image is None or label is None:
        lacking = "images" if image is None else "labels"
        known = ", ".join(_IMAGES if image is None else _LABELS)
        raise UserError(f"{source} has the columns {', '.join(names)}: one of {lacking} is needed, such as {known}.")
    classes = _feature(features, label).get("names")
    return Columns(image, label, None if classes is None else tuple(str(name) for name in classes))


def features_of(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return what `datasets` wrote of the columns into a file's schema; empty where another program wrote it."""
    try:
        return dict(json.loads((metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError):
        return {}


def image_bytes(value: Any, where: str) -> bytes:
    """Return the bytes of an image as a table has it: plain, or with the path that it came from.

    Args:
        value: Bytes, or {"bytes": ..., "path": ...}.
        where: The row, for the error.

    Raises:
        BadImageError: There are no bytes.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        path = value.get("path") if isinstance(value, dict) else None
        raise BadImageError(Path(where), f"only the path {path!r} is there" if path else "its cell has no bytes")
    return content


def _one(usual: Sequence[str], kind: str, names: Sequence[str], features: Mapping[str, Any]) -> str | None:
    of_kind = [name for name in names if _feature(features, name).get("_type") == kind]
    by_name = [name for name in usual if name in names]
    return next(iter(by_name or (of_kind if len(of_kind) == 1 else [])), None)


def _feature(features: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = features.get(name)
    return found if isinstance(found, dict) else {}
