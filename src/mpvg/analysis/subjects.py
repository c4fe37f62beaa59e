"""The models to analyse: checkpoints, folders of them, registered models and plain vision transformers of timm."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch

from mpvg.analysis.record import check_plain
from mpvg.checkpoint import CLASSIFICATION, OF_SEQUENCES, Card, load_any
from mpvg.data.preprocessing import Preprocessing
from mpvg.errors import UserError, nearest
from mpvg.fold import Folded, fold
from mpvg.scheme import SCHEMES
from mpvg.train.build import check_scheme

if TYPE_CHECKING:  # it needs what only sequences need
    from mpvg.sequence_card import SequenceCard

_WEIGHTS = (".ckpt", ".safetensors")
_OF_A_FIT = ("best.safetensors", "best.ckpt", "last.ckpt")


@dataclass(frozen=True)
class Subject:
    """A model to analyse.

    Args:
        name: What the user called it.
        label: Short and unique.
        series: The same text for models that differ in their seed alone: the label without the seed.
        model_name: timm's.
        scheme: Canonical text; "" for a model without one.
        model: In eval mode.
        preprocessing: Of its images or sequences.
        card: Of its checkpoint; None for a model that was created.
        note: What a reader should know of it, or "".
    """

    name: str
    label: str
    series: str
    model_name: str
    scheme: str
    model: Any
    preprocessing: Any  # Preprocessing, or one of mpvg.analysis.sequences
    card: Card | SequenceCard | None = None
    note: str = ""

    @property
    def task(self) -> str:
        """What it was made for: "classification", of images, or "text" or "series"."""
        return getattr(self.card, "task", CLASSIFICATION)

    @property
    def seed(self) -> int | None:
        """The seed of its training; None where there was none."""
        return None if self.card is None else self.card.data.get("seed")

    @property
    def folded(self) -> bool:
        return isinstance(self.model, Folded)


def load_subjects(
    names: Sequence[str],
    *,
    scheme: str = "mpvg",
    img_size: int | None = None,
    pretrained: bool = False,
    folded: bool = False,
) -> list[Subject]:
    """Load or create the models to analyse.

    Args:
        names: Of each a checkpoint of `mpvg fit` or `mpvg compare`, a folder of such checkpoints, NAME or NAME:SCHEME
            of a registered model, or the name of a plain vision transformer of timm.
        scheme: Of registered models that are named without one.
        img_size: Side of the images in pixels, for models that are created; None for their own.
        pretrained: Load timm's own weights into models that are created.
        folded: Fold each layer-wise model.

    Returns:
        One subject a model, all of one task, with labels that tell them apart.

    Raises:
        UserError: There is no such checkpoint, model or scheme, it cannot be built or analysed, or the models are of
            several tasks.
    """
    subjects = []
    for name in names:
        path = Path(name).expanduser()
        if timm.is_model(name.partition(":")[0]):  # also where a folder is called like it
            subjects.append(_created(name, scheme, img_size, pretrained))
        elif name and os.path.isdir(path):
            subjects += sorted((_from_checkpoint(str(file), file) for file in _checkpoints_in(path)), key=_in_order)
        elif os.path.isfile(path) or path.suffix in _WEIGHTS:
            subjects.append(_from_checkpoint(name, path))
        else:
            raise _unknown(name)
    _check_one_task(subjects)
    if folded:
        subjects = [replace(one, model=fold(one.model)) if one.scheme else one for one in subjects]
    return _labelled(subjects)


def _checkpoints_in(folder: Path) -> list[Path]:
    found = sorted(folder.glob("runs/*.safetensors")) or [folder / name for name in _OF_A_FIT]
    found = [path for path in found if path.is_file()]
    if not found:
        raise UserError(f"{folder} holds no checkpoint of mpvg fit or mpvg compare: name one, or a folder of theirs.")
    return found if found[0].parent != folder else found[:1]


def _in_order(subject: Subject) -> tuple[int, str, int]:
    """Sort by scheme, from the baselines to mpvg, and by seed."""
    presets = list(SCHEMES)[::-1]
    rank = presets.index(subject.scheme) if subject.scheme in presets else len(presets)
    return rank, subject.scheme, subject.seed or 0


def _check_one_task(subjects: Sequence[Subject]) -> None:
    first = subjects[0]
    for one in subjects:
        if one.task != first.task:
            kinds = [model.task.replace(CLASSIFICATION, "images") for model in (first, one)]
            raise UserError(
                f"{first.name} is a model of {kinds[0]}, {one.name} of {kinds[1]}: no samples are for both, so analyse "
                "them one by one."
            )


def _from_checkpoint(name: str, path: Path) -> Subject:
    found, model = load_any(path)
    card: Any = found
    if not isinstance(card, Card) and card.task not in OF_SEQUENCES:
        raise UserError(f"{path} is a checkpoint of {card.task}, and this is for classification: use mpvg test.")
    preprocessing = card.preprocessing
    if card.data.get("shuffle_tokens"):
        from mpvg.analysis.sequences import InRandomOrder

        preprocessing = InRandomOrder(preprocessing)
    of_data = {key: value for key, value in card.data.items() if key != "seed"}
    of_model = {key: value for key, value in card.arguments.items() if key != "vocab_size"}  # by the split, so the seed
    return Subject(
        name=name,
        label="",
        series=json.dumps([card.model, str(model.scheme), of_model, of_data], default=str),
        model_name=card.model,
        scheme=str(model.scheme),
        model=model,
        preprocessing=preprocessing,
        card=card,
    )


def _created(name: str, scheme: str, img_size: int | None, pretrained: bool) -> Subject:
    model_name, _, own_scheme = name.partition(":")
    ours = model_name.startswith("mpvg_")
    if model_name.startswith("mpvg_sequence"):
        raise UserError(
            f"{name}: a model of text or series knows its words or channels from training: name a checkpoint of mpvg "
            "compare --task text or series."
        )
    if own_scheme and not ours:
        raise UserError(f"{name!r}: {model_name} is timm's own and has no scheme: leave {':' + own_scheme!r} out.")
    arguments: dict[str, Any] = {"scheme": check_scheme(own_scheme or scheme)} if ours else {}
    if img_size is not None:
        arguments["img_size"] = img_size
    torch.manual_seed(0)
    try:
        model = timm.create_model(model_name, pretrained=pretrained, **arguments).eval()
        check_plain(model)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from error
    found = timm.data.resolve_data_config(model=model)
    channels, *_ = found["input_size"]
    size = tuple(model.patch_embed.img_size)
    scheme = str(model.scheme) if ours else ""
    return Subject(
        name=name,
        label="",
        series=json.dumps([model_name, scheme, list(size)]),
        model_name=model_name,
        scheme=scheme,
        model=model,
        preprocessing=Preprocessing(size, channels, tuple(found["mean"]), tuple(found["std"])),
        note="" if pretrained else f"{name} was created with random weights (seed 0): it has not been trained.",
    )


def _unknown(name: str) -> UserError:
    model_name = name.partition(":")[0]
    known = timm.list_models("mpvg_*" if model_name.startswith("mpvg_") or "_" not in model_name else "*")
    return UserError(
        f"{name[:200]!r} is no checkpoint, no folder of checkpoints and no registered model"
        f"{nearest(model_name[:200], known)}: `mpvg models` lists ours, timm.list_models() all."
    )


def _labelled(subjects: Sequence[Subject]) -> list[Subject]:
    """Give each the shortest label that tells it apart: scheme, model where these differ, seed, and else a number.

    Models of one series that have one seed, or none, are no seeds of each other: each begins a series of its own.
    """
    models = len({one.model_name for one in subjects})
    texts: dict[tuple[str, int], str] = {}  # of each series, and of its how many-th repetition
    placed: list[tuple[Subject, str]] = []
    met: Counter[tuple[str, int | None]] = Counter()
    for one in subjects:
        again = met[one.series, one.seed]
        met[one.series, one.seed] += 1
        text = one.scheme or one.model_name
        if models > 1 and one.scheme:
            text += f" {one.model_name.removeprefix('mpvg_')}"
        if (one.series, again) not in texts:
            texts[one.series, again] = _unused(text, texts.values())
        placed.append((one, texts[one.series, again]))
    members = Counter(series for _, series in placed)
    return [
        replace(one, series=series, label=f"{series}, seed {one.seed}" if members[series] > 1 else series)
        for one, series in placed
    ]


def _unused(text: str, used: Collection[str]) -> str:
    """Return a text, numbered where it is taken."""
    numbered = (f"{text} ({number})" for number in count(2))
    return next(one for one in chain([text], numbered) if one not in used)
