"""Which models take part in a heat, named by the user and checked before anything is measured."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import timm

from mpvg.bench.work import Contestant
from mpvg.errors import UserError, nearest
from mpvg.scheme import SCHEMES
from mpvg.train.build import check_registered, check_scheme

VARIANTS = ("folded", "unfolded")


def reference(model: str, word: str) -> Contestant:
    """Return the model that another one is measured against.

    Args:
        model: Registered name of the other one.
        word: "timm" for timm's model of the same architecture, a scheme for the same model under it, or NAME[:SCHEME].

    Raises:
        UserError: There is no such model.
    """
    if word == "timm":
        own = model.removeprefix("mpvg_")
        if own not in timm.list_models():
            raise UserError(f"--against timm: timm has no {own}. Name a scheme, as in --against default.")
        return Contestant(own)
    if word.partition(":")[0] in SCHEMES:
        return Contestant(model, check_scheme(word))
    name, _, scheme = word.partition(":")
    if name.startswith("mpvg_"):
        return Contestant(check_registered(name), check_scheme(scheme or "mpvg"))
    if name not in timm.list_models():
        known = [*SCHEMES, *timm.list_models()]
        raise UserError(f"--against {word!r} is no model of timm and no scheme{nearest(word, known)}.")
    return Contestant(name)


def entries(model: str, scheme: str, variants: Collection[str]) -> Iterator[Contestant]:
    """Yield a model under a scheme, folded and not; where there is nothing to fold, as it is.

    Args:
        model: Registered name.
        scheme: Canonical text.
        variants: Some of VARIANTS.
    """
    built: Any = timm.create_model(model, scheme=scheme, device="meta")
    foldable = any("norm_pos" in name for name, _ in built.named_parameters())
    if foldable and "folded" in variants:
        yield Contestant(model, scheme, folded=True)
    if "unfolded" in variants or not foldable:
        yield Contestant(model, scheme)


def check_entries(found: Collection[Contestant], size: tuple[int, int] | None) -> None:
    """Refuse models that cannot be built, or would be compared on images of different sizes.

    Args:
        found: All models of a heat.
        size: Of the images (H, W) in pixels; None for the models' own.

    Raises:
        UserError: One of them does not go with the others; the message names it.
    """
    own_sizes: dict[tuple[int, ...], str] = {}
    for contestant in found:
        try:
            built = replace(contestant, folded=False).build(size, "meta")
        except (AssertionError, TypeError, ValueError) as error:
            raise UserError(f"{contestant.name}: {error}") from error
        own_sizes[tuple(built.default_cfg["input_size"])] = contestant.name
    if size is None and len(own_sizes) > 1:
        told = " and ".join(f"{name} takes {' x '.join(map(str, own))}" for own, name in own_sizes.items())
        raise UserError(f"{told}: give one size for all with --img-size.")
