"""The models to analyse: checkpoints, folders of them, registered models and plain vision transformers of timm."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import timm
import torch

from mpvg.analysis.record import check_plain
from mpvg.checkpoint import Card, load_model
from mpvg.data.preprocessing import Preprocessing
from mpvg.errors import UserError, nearest
from mpvg.fold import Folded, fold
from mpvg.scheme import SCHEMES
from mpvg.train.build import check_scheme

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
        preprocessing: Of its images.
        card: Of its checkpoint; None for a model that was created.
        note: What a reader should know of it, or "".
    """

    name: str
    label: str
    series: str
    model_name: str
    scheme: str
    model: Any
    preprocessing: Preprocessing
    card: Card | None = None
    note: str = ""

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
        One subject a model, with labels that tell them apart.

    Raises:
        UserError: There is no such checkpoint, model or scheme, or it cannot be built or analysed.
    """
    subjects = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            subjects += sorted((_from_checkpoint(str(file), file) for file in _checkpoints_in(path)), key=_in_order)
        elif path.is_file() or path.suffix in _WEIGHTS:
            subjects.append(_from_checkpoint(name, path))
        else:
            subjects.append(_created(name, scheme, img_size, pretrained))
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
    assert subject.card is not None
    presets = list(SCHEMES)[::-1]
    rank = presets.index(subject.scheme) if subject.scheme in presets else len(presets)
    return rank, subject.scheme, int(subject.card.data.get("seed", 0))


def _from_checkpoint(name: str, path: Path) -> Subject:
    card, model = load_model(path)
    return Subject(
        name=name,
        label="",
        series=json.dumps([card.model, str(model.scheme), card.arguments], default=str),
        model_name=card.model,
        scheme=str(model.scheme),
        model=model,
        preprocessing=card.preprocessing,
        card=card,
    )


def _created(name: str, scheme: str, img_size: int | None, pretrained: bool) -> Subject:
    model_name, _, own_scheme = name.partition(":")
    ours = model_name.startswith("mpvg_")
    if not timm.is_model(model_name):
        known = timm.list_models("mpvg_*" if ours or "_" not in model_name else "*")
        raise UserError(
            f"{name!r} is no checkpoint, no folder of checkpoints and no registered model{nearest(model_name, known)}: "
            "`mpvg models` lists ours, timm.list_models() all."
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


def _labelled(subjects: Sequence[Subject]) -> list[Subject]:
    """Give each the shortest label that tells it apart: scheme, model where these differ, seed, and else a number."""
    models = len({one.model_name for one in subjects})
    series: dict[str, str] = {}  # of each series the text that stands for it
    for one in subjects:
        text = one.scheme or one.model_name
        if models > 1 and one.scheme:
            text = f"{one.model_name.removeprefix('mpvg_')} {text}"
        if one.series not in series:
            series[one.series] = _unused(text, series.values())
    members = Counter(one.series for one in subjects)
    named: list[Subject] = []
    for one in subjects:
        text = series[one.series]
        if members[one.series] > 1 and one.card is not None:
            text += f", seed {one.card.data.get('seed', '?')}"
        label = _unused(text, [other.label for other in named])
        named.append(replace(one, label=label, series=series[one.series]))
    return named


def _unused(text: str, used: Collection[str]) -> str:
    """Return a text, numbered where it is taken."""
    numbered = (f"{text} ({number})" for number in count(2))
    return next(one for one in chain([text], numbered) if one not in used)
