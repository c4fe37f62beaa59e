"""`mpvg.create_model`: a model by timm's name or ours, under any scheme, from scratch or from weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.models import get_arch_pretrained_cfgs, get_deprecated_models
from torch import Tensor

from mpvg.errors import UserError, nearest
from mpvg.models.architectures import timm_architectures
from mpvg.models.weights import load_weights
from mpvg.published import ENTRY, read_published
from mpvg.scheme import PositionScheme, SchemeLike
from mpvg.weight_files import Origin, read_origin, read_weights

_UNKNOWN = Origin()
_OF_FEATURES = ("features_only", "out_indices", "feature_cls")


@dataclass(frozen=True)
class Start:
    """Where a model starts from.

    Args:
        name: Its name, ours or timm's.
        arguments: What `build` must be told beside name, scheme and what the images ask for.
        weights: To be loaded; None for none, or for those that timm fetches.
        what: Where they come from, in words.
        origin: What is known of the images that they were trained on.
        fetches: Whether timm fetches them.
        preserve: As in `create_model`.
        overlay: What timm's configuration of the model is to say beside.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] | None = None
    what: str = ""
    origin: Origin = _UNKNOWN
    fetches: bool = False
    preserve: bool = True
    overlay: Mapping[str, Any] = field(default_factory=dict)

    def build(self, scheme: SchemeLike, **arguments: Any) -> tuple[Any, list[str]]:
        """Return the model, and what of the weights was not taken over, in words.

        Args:
            scheme: As for `create_model`.
            arguments: Of timm, likewise.
        """
        overlay = {**self.overlay, **(arguments.pop("pretrained_cfg_overlay", None) or {})}
        arguments = {**self.arguments, **arguments, "pretrained_cfg_overlay": overlay or None}
        if not self.fetches:
            model = build(self.name, scheme, **arguments)
            return model, [] if self.weights is None else self._load(model, scheme, arguments)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                model = build(self.name, scheme, pretrained=True, **arguments)
            except (OSError, RuntimeError) as error:  # of the Hub
                raise UserError(
                    f"pretrained=True: the weights of {self.name} could not be fetched ({error}). Name a file of them."
                ) from error
        return model, [str(one.message).rstrip(".") for one in caught if one.category is UserWarning]

    def _load(self, model: Any, scheme: SchemeLike, arguments: Mapping[str, Any]) -> list[str]:
        assert self.weights is not None
        options: dict[str, Any] = {"what": self.what, "image_size": self.origin.image_size, "preserve": self.preserve}
        if not arguments.get("features_only"):
            return load_weights(model, self.weights, **options)
        # blocks and norms that a feature extractor does not need are gone
        whole = build(self.name, scheme, **{key: arguments[key] for key in arguments if key not in _OF_FEATURES})
        told = load_weights(whole, self.weights, **options)
        loaded = whole.state_dict()
        model.model.load_state_dict({key: loaded[key] for key in model.model.state_dict()})
        return told


def create_model(
    name: str,
    *,
    scheme: SchemeLike = "mpvg",
    pretrained: bool | str | Path = False,
    preserve: bool | None = None,
    **timm_args: Any,
) -> Any:
    """Create a model under a position scheme, as `timm.create_model` creates one without.

    Args:
        name: One of timm's names, with a tag or without ("vit_small_patch16_224.augreg_in21k"), or one of ours; also a
            saved model's, "local-dir:DIR" or "hf-hub:OWNER/NAME".
        scheme: Preset name, text, mapping or PositionScheme.
        pretrained: True for the weights of the tag, which timm fetches, or of the saved model; or the path of a file
            (.safetensors, .pth) or a folder with one. A class token that the scheme does not read out is dropped with
            its row, tables are resampled, a head for other classes starts anew.
        preserve: As in `convert`; None is True where weights are loaded that deliver no positions yet.
        timm_args: Every other argument of `timm.create_model` (img_size, in_chans, num_classes, drop_path_rate, ...).

    Returns:
        The model, in training mode as timm's are. What of the weights was not taken over is told by a UserWarning.

    Raises:
        ValueError: There is no such model or scheme, or the model is not converted.
        UserError: The weights cannot be read or do not fit.
    """
    cache_dir = timm_args.get("cache_dir")
    start = starting_point(name, scheme, pretrained=pretrained, preserve=preserve, cache_dir=cache_dir)
    model, told = start.build(scheme, **timm_args)
    if told:
        warnings.warn(f"{start.what}: {'; '.join(told)}.", stacklevel=2)
    return model


def build(name: str, scheme: SchemeLike, *, preserve: bool = False, **timm_args: Any) -> Any:
    """Build a model by its name, ours or timm's, without weights unless timm fetches them.

    Args:
        name: As for `create_model`.
        scheme: Likewise.
        preserve: Whether positions have gates, as those of a conversion that preserves the function.
        timm_args: Every other argument of `timm.create_model`.
    """
    if name.startswith("mpvg_") and not preserve:
        return timm.create_model(name, scheme=scheme, **timm_args)
    return timm.create_model(ENTRY, base=name, scheme=scheme, preserve=preserve, **timm_args)


def starting_point(
    name: str,
    scheme: SchemeLike,
    *,
    pretrained: bool | str | Path = False,
    preserve: bool | None = None,
    cache_dir: Any = None,
) -> Start:
    """Return what the model that `create_model` makes starts from; arguments are its.

    Raises:
        UserError: There is no such model, or the weights cannot be read.
    """
    _check_pretrained(pretrained)
    arguments: dict[str, Any] = {}
    overlay: Mapping[str, Any] = {}
    weights, what, origin = None, name if pretrained is True else str(pretrained), _UNKNOWN
    if ":" in name:
        published = read_published(name, cache_dir)
        name, overlay, origin = published.name, published.cfg, published.origin
        arguments = published.arguments if name.startswith("mpvg_") else {"base_args": published.arguments}
        weights = published.read_weights(cache_dir) if pretrained is True else None
    if not isinstance(pretrained, bool):
        weights, origin = read_weights(pretrained), read_origin(pretrained)
    name = get_deprecated_models().get(name) or name
    check_name(name)
    fetches = pretrained is True and weights is None
    if fetches and name.startswith("mpvg_"):
        raise UserError(
            f"pretrained=True: nobody has published weights of {name}. Name a file of weights, or create timm's "
            "architecture of that kind (such as 'deit_tiny_patch16_224.fb_in1k'), whose weights timm fetches."
        )
    if fetches:
        found = timm.get_pretrained_cfg(name, allow_unregistered=True)
        origin = Origin(normalisation=(tuple(found.mean), tuple(found.std))) if found else origin
    if weights is not None and any("norm_pos." in key for key in weights):
        gated = any("ls_pos." in key for key in weights)
    else:
        parsed = PositionScheme.parse(scheme)
        delivers = parsed.layerwise or parsed.last_norm is not None
        gated = bool(pretrained) and preserve is not False and delivers
    if gated:
        arguments = {**arguments, "preserve": True}
    return Start(name, arguments, weights, what, origin, fetches, preserve is not False, overlay)


def _check_pretrained(pretrained: Any) -> None:
    words = ("", "true", "false", "none")
    is_path = isinstance(pretrained, str | Path) and (
        str(pretrained).lower() not in words or Path(pretrained).is_file()
    )
    if not (isinstance(pretrained, bool) or is_path):
        raise UserError(f"pretrained={pretrained!r} is no path: use True, False or the path of a file of weights.")


def check_name(name: str) -> str:
    """Return the name of a model that can be built under a scheme.

    Args:
        name: Ours or timm's, with a tag or without, or "local-dir:DIR" and "hf-hub:OWNER/NAME".

    Raises:
        UserError: There is no such model or tag.
    """
    if ":" in name:
        read_published(name)
        return name
    ours, theirs = timm.list_models("mpvg_*"), timm_architectures()
    architecture, _, tag = name.partition(".")
    is_model = timm.is_model(architecture) and architecture != ENTRY
    if architecture not in {*ours, *theirs} and (not is_model or _is_of_timm(architecture)):
        near = "" if is_model else nearest(architecture, [*theirs, *ours])
        raise UserError(
            f"model {name!r} is {'not converted' if is_model else 'unknown'}{near}: use an 'mpvg_*' name (mpvg "
            "models lists them), or one of timm's plain vision transformers and Swins."
        )
    tags = [known for full in get_arch_pretrained_cfgs(architecture) if (known := full.partition(".")[2])]
    if tag and tag not in tags:
        remedy = f"use one of {', '.join(tags)}" if tags else "leave it out"
        raise UserError(f"model {name!r} has an unknown tag{nearest(tag, tags)}: {remedy}.")
    return name


def _is_of_timm(architecture: str) -> bool:
    return str(timm.model_entrypoint(architecture).__module__).startswith("timm.")
