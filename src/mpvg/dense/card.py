"""What a checkpoint of a detector or segmenter tells: how to rebuild it, and what its numbers mean."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import timm
import torch
from torch import Tensor

from mpvg.create import build
from mpvg.dense.detection import build_mask_rcnn
from mpvg.dense.segmentation import build_upernet
from mpvg.errors import UserError, nearest
from mpvg.train.build import check_scheme

DETECTION: Final = "detection"
SEGMENTATION: Final = "segmentation"
_BUILDERS: dict[str, Callable[..., Any]] = {DETECTION: build_mask_rcnn, SEGMENTATION: build_upernet}
_OF_THE_DATA = ("mean", "std")


@dataclass(frozen=True)
class DenseCard:
    """How to rebuild a model for a dense task and what its numbers mean; JSON-able.

    Args:
        task: "detection" or "segmentation".
        model: Name of the backbone, one of the library's ViT-Adapters.
        scheme: Canonical text of its position scheme.
        arguments: Further arguments of `mpvg.create.build`.
        head: Those of `build_mask_rcnn` or `build_upernet`.
        classes: Names: in segmentation by the numbers in class maps, in detection by label from 1.
        category_ids: The set's own numbers of the classes, in that order.
        mean: Of each channel, of pixels from 0 to 1, by which images are normalised.
        std: Likewise.
        evaluation: At which size images are seen: scale (of the short side) and long (at most), in pixels; in
            segmentation also window, the side of windows that slide and the pixels between two, or None for whole
            images.
        data: Arguments of the data that it was trained on.
    """

    ema: ClassVar[bool] = False  # of these models no moving average of weights is kept

    task: str
    model: str
    scheme: str
    arguments: dict[str, Any]
    head: dict[str, Any]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    evaluation: dict[str, Any]
    data: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, card: Mapping[str, Any]) -> DenseCard:
        """Return the card that `as_dict` gave, after a way through JSON or not.

        Raises:
            ValueError: It names no model, scheme or task of this library.
        """
        task, classes, category_ids = card["task"], tuple(card["classes"]), tuple(card["category_ids"])
        if task not in _BUILDERS:
            raise ValueError(f"its task is {task!r}, and not one of {', '.join(_BUILDERS)}")
        if len(category_ids) != len(classes):
            raise ValueError(f"it has {len(classes)} classes and {len(category_ids)} numbers for them")
        evaluation = dict(card["evaluation"])
        if evaluation.get("window") is not None:
            evaluation["window"] = tuple(evaluation["window"])
        return cls(
            task=task,
            model=check_backbone(card["model"]),
            scheme=check_scheme(card["scheme"]),
            arguments=dict(card["arguments"]),
            head=dict(card["head"]),
            classes=classes,
            category_ids=category_ids,
            mean=tuple(card["mean"]),
            std=tuple(card["std"]),
            evaluation=evaluation,
            data=dict(card["data"]),
        )

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in uint8 as a segmenter is fed them; a detector normalises by itself."""
        mean, std = (torch.tensor(part, device=pixels.device).view(3, 1, 1) for part in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    def build(self) -> Any:
        """Create the model, with weights still to be loaded.

        Raises:
            UserError: It cannot be built with these arguments.
        """
        try:
            backbone = build(self.model, self.scheme, **self.arguments)
        except (TypeError, ValueError) as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            told = f"it has no argument {unknown[1]!r}." if unknown else str(error)
            raise UserError(f"{self.model} under {self.scheme}: {told}") from error
        of_data = {name: getattr(self, name) for name in _OF_THE_DATA} if self.task == DETECTION else {}
        return _BUILDERS[self.task](backbone, len(self.classes), **self.head, **of_data)


def check_backbone(name: str) -> str:
    """Return the name of a backbone that gives the four maps.

    Args:
        name: What the user gave.

    Raises:
        UserError: There is no such backbone.
    """
    known = timm.list_models("mpvg_vit_adapter_*")
    if name not in known:
        raise UserError(f"model {name!r} gives no four maps{nearest(name, known)}: use one of {', '.join(known)}.")
    return name


def check_head(task: str, head: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a head.

    Args:
        task: "detection" or "segmentation".
        head: What the user gave.

    Raises:
        UserError: A head of that kind has no such argument.
    """
    parameters = inspect.signature(_BUILDERS[task]).parameters.values()
    known = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in _OF_THE_DATA]
    for name in head:
        if name not in known:
            raise UserError(f"head.{name} is unknown{nearest(name, known)}: name one of {', '.join(known)}.")
    return dict(head)
