"""What models are trained for, and how a command line says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import yaml

from mpvg.checkpoint import CLASSIFICATION, OF_SEQUENCES
from mpvg.commands.options import need_dense
from mpvg.errors import UserError, nearest
from mpvg.train.training import Training

TASKS = (CLASSIFICATION, "detection", "segmentation")


@dataclass(frozen=True)
class Task:
    """A kind of training.

    Args:
        name: One of `TASKS`.
        model: What trains the model.
        data: What reads the images.
        score: What the best epoch is chosen by, in words.
    """

    name: str
    model: type[Training]
    data: type[lightning.LightningDataModule]
    score: str


def task_called(name: str, *, command: str) -> Task:
    """Return a task by its name.

    Args:
        name: What the user or a checkpoint says.
        command: Which of mpvg's asks, for the message where something is not installed.

    Raises:
        UserError: There is no such task, or it needs what is not installed.
    """
    if name in OF_SEQUENCES:
        raise UserError(
            f"task {name!r} is none of mpvg {command}'s: what mpvg compare trained on {name} is for mpvg analyze."
        )
    if name not in TASKS:
        raise UserError(f"task {name!r} is unknown{nearest(name, TASKS)}: name one of {', '.join(TASKS)}.")
    if name == CLASSIFICATION:
        from mpvg.train.data import ImageDataModule
        from mpvg.train.module import ImageClassification

        return Task(name, ImageClassification, ImageDataModule, "accuracy")
    need_dense(command)
    from mpvg.train.dense_data import DetectionData, SegmentationData
    from mpvg.train.dense_modules import ObjectDetection, SemanticSegmentation

    if name == "detection":
        return Task(name, ObjectDetection, DetectionData, "box AP")
    return Task(name, SemanticSegmentation, SegmentationData, "mIoU")


def value_named(option: str, args: Sequence[str]) -> str | None:
    """Return the last value that a command line gives an option, by itself or in a YAML file; None for none.

    What a task's parser is made of must be known before it parses. What is wrong with the words, it tells.

    Args:
        option: Its name.
        args: The words of the command line.
    """
    found = None
    for word, following in zip(args, [*args[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        value = value if equals else following
        if name == f"--{option}":
            found = value
        elif name in ("--config", "-c"):
            found = _value_in_file(option, value) or found
    return found


def _value_in_file(option: str, path: str) -> str | None:
    try:
        content: Any = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    value = content.get(option) if isinstance(content, dict) else None
    return None if value is None else str(value)
