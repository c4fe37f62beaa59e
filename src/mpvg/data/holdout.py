"""The part of train that is held out for validation where a source has no validation split."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mpvg.data.splits import AnySet, AnySplit, LabelledSet
from mpvg.errors import UserError

_FEWEST = 5  # training samples that can be split


def checked(data: AnySet, *, holds_out: bool = True) -> AnySet:
    """Return a set whose note is a whole sentence and says whether a part of train will be held out.

    Args:
        data: The set; its note has no full stop yet.
        holds_out: Whether a part of train will be held out where there is no validation split.

    Raises:
        UserError: It has one class, or too few training samples to hold a part of them out.
    """
    if len(data.classes) < 2:
        raise UserError(f"{data.name} has one class, {data.classes[0]!r}: give {data.unit} of two or more.")
    if data.val is not None or not holds_out:
        return replace(data, note=f"{data.note}.")
    if len(data.train) < _FEWEST:
        raise UserError(
            f"{data.name} has {len(data.train)} training {data.unit} and no val split: "
            f"give {_FEWEST} or more, or a val."
        )
    return replace(data, note=f"{data.note}; no validation split, so a part of train is taken for it.")


def split_validation(data: LabelledSet[AnySplit], *, fraction: float, seed: int) -> tuple[AnySplit, AnySplit]:
    """Return the training and the validation split, which is a part of train where the source has none.

    Args:
        data: The set.
        fraction: Part of train to take, as many of each class as there are in proportion, where that is possible.
        seed: What to draw it by.

    Returns:
        Training and validation split.

    Raises:
        UserError: The fraction leaves nothing to train on.
    """
    if data.val is not None:
        return data.train, data.val
    train, val = validation_rows(data.train.labels, len(data.classes), fraction=fraction, seed=seed, unit=data.unit)
    return data.train.take(train), data.train.take(val)


def validation_rows(
    labels: npt.NDArray[np.int64], classes: int, *, fraction: float, seed: int, unit: str = "images"
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return which samples are trained on and which are held out, each in order.

    Args:
        labels: Of the training samples (N,).
        classes: Number of classes.
        fraction: Part to hold out, as for `split_validation`.
        seed: What to draw it by.
        unit: What the samples are called.

    Raises:
        UserError: The fraction leaves nothing to train on.
    """
    from sklearn.model_selection import train_test_split

    held = _held_out(len(labels), classes, fraction, unit)
    rows = np.arange(len(labels))
    if min(Counter(labels.tolist()).values()) >= 2 and min(held, len(rows) - held) >= classes:
        train, val = train_test_split(rows, test_size=held, random_state=seed, stratify=labels)
    else:  # too few for as many of each class: but no class loses all its samples
        order = np.random.default_rng(seed).permutation(rows)
        _, kept = np.unique(labels[order], return_index=True)
        val = np.delete(order, kept)[:held]
        train = np.setdiff1d(rows, val)
    return np.sort(train), np.sort(val)


def held_out(data: LabelledSet[Any], fraction: float) -> int:
    """Return how many training samples a validation split takes; at least one of each class is left.

    Args:
        data: The set.
        fraction: Part of train to take.

    Raises:
        UserError: The fraction leaves too few to train on.
    """
    return _held_out(len(data.train), len(data.classes), fraction, data.unit)


def _held_out(samples: int, classes: int, fraction: float, unit: str) -> int:
    held = math.ceil(fraction * samples)
    if not 1 <= held <= samples - classes:
        raise UserError(
            f"a validation fraction of {fraction:g} takes {held} of {samples} training {unit} and leaves too few for "
            f"{classes} classes: lower it, or give a val split."
        )
    return held
