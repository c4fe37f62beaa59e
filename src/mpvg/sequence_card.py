"""How a checkpoint tells what a model of sequences is: JSON-able, beside the weights in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from mpvg.create import build, check_name
from mpvg.data.sequences.preprocessing import SeriesPreprocessing, TextPreprocessing
from mpvg.train.build import check_scheme

TASKS = {"text": TextPreprocessing, "series": SeriesPreprocessing}


@dataclass(frozen=True)
class SequenceCard:
    """How to rebuild a model of text or series and what its numbers mean.

    Args:
        task: "text" or "series".
        model: Registered name.
        scheme: Canonical text of the position scheme.
        arguments: Further arguments of `mpvg.create.build`.
        preprocessing: From sentences or series to what the model is given.
        classes: Names in the order of the outputs.
        data: Arguments of the data that it was trained on.
    """

    task: str
    model: str
    scheme: str
    arguments: dict[str, Any]
    preprocessing: TextPreprocessing | SeriesPreprocessing
    classes: tuple[str, ...]
    data: dict[str, Any]
    ema: ClassVar[bool] = False  # no average of the weights is kept

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, card: Mapping[str, Any]) -> SequenceCard:
        """Return the card that `as_dict` gave, after a way through JSON or not."""
        preprocessing = TASKS[card["task"]](**card["preprocessing"])
        arguments, classes = dict(card["arguments"]), tuple(card["classes"])
        expected = {**preprocessing.model_arguments, "num_classes": len(classes)}
        if not expected.items() <= arguments.items():
            raise ValueError(f"the model was built with {arguments}, and not for these sequences: {expected}")
        names = check_name(card["model"]), check_scheme(card["scheme"])
        return cls(card["task"], *names, arguments, preprocessing, classes, dict(card["data"]))

    def build(self) -> Any:
        """Create the model, with weights still to be loaded."""
        return build(self.model, self.scheme, **self.arguments)
