"""The samples and schemes of a comparison, checked before anything is computed or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from mpvg.compare.settings import Settings
from mpvg.data.holdout import held_out
from mpvg.data.splits import LabelledSet
from mpvg.errors import UserError
from mpvg.train.build import check_scheme


def load_inputs(settings: Settings, schemes: Sequence[str]) -> tuple[dict[str, str], LabelledSet]:
    """Return the schemes' canonical names, each with the scheme that the model makes of it, and the labelled set.

    Args:
        settings: The configuration.
        schemes: Names or texts of schemes.

    Raises:
        UserError: A scheme, the model or the data cannot be used.
    """
    names = [check_scheme(scheme) for scheme in schemes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--schemes names {twice!r} twice: leave one out.")
    built: dict[str, str]
    data: LabelledSet
    if settings.sequences is None:
        from mpvg.compare.images import load_images

        built, data = load_images(settings, names)
    else:
        from mpvg.compare.sequences import load_sequences

        built, data = load_sequences(settings, names)
    if data.val is None:
        held_out(data, settings.val_fraction)
    return built, data


def one_and_the_same(model: str, built: Mapping[str, str]) -> list[str]:
    """Say which schemes are one in a model's family.

    Args:
        model: Registered name.
        built: Schemes' names, each with the scheme that the model makes of it.

    Returns:
        A sentence a pair.
    """
    return [
        f"{a} and {b} are one scheme in {model}, which has no class token: their runs are the same."
        for a, b in combinations(built, 2)
        if built[a] == built[b]
    ]
