"""`mpvg.create_model`: a model by timm's name or ours, under any scheme, from scratch or from weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from mpvg.convert import ENTRY, convert
from mpvg.errors import UserError, nearest
from mpvg.models.architectures import timm_architectures
from mpvg.models.weights import filter_checkpoint, load_weights
from mpvg.scheme import PositionScheme, SchemeLike
from mpvg.weight_files import read_normalisation, read_weights


@dataclass(frozen=True)
class Start:
    """Where a model starts from.

    Args:
        arguments: What `build` must be told beside name, scheme and what the images ask for.
        pretrained: As given to `create_model`.
        weights: To be loaded; None for none, or for those that timm fetches.
        normalisation: Mean and deviation of each channel that these weights expect; None where nothing says so.
    """

    arguments: dict[str, Any]
    pretrained: bool | str | Path
    weights: dict[str, Tensor] | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def build(self, name: str, scheme: SchemeLike, **arguments: Any) -> tuple[Any, list[str]]:
        """Return the model, and what of the weights was not taken over, in words.

        Args:
            name: As for `create_model`.
            scheme: Likewise.
            arguments: Of timm, as for `create_model`.
        """
        told: list[str] = []
        with warnings.catch_warnings(record=self.pretrained is True) as caught:
            try:
                model = build(name, scheme, pretrained=self.pretrained is True, **self.arguments, **arguments)
            except (OSError, RuntimeError) as error:  # of the Hub
                if self.pretrained is not True:
                    raise
                raise UserError(
                    f"pretrained=True: the weights of {name} could not be fetched ({error}). Name a file of weights."
                ) from error
        told += [str(warning.message).rstrip(".") for warning in caught or ()]
        if self.weights is not None:
            inner = getattr(model, "model", model)  # of features_only
            told += load_weights(inner, self.weights, what=str(self.pretrained))
        return model, told


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
        name: One of timm's names, with a tag or without ("vit_small_patch16_224.augreg_in21k"), or one of ours.
        scheme: Preset name, text, mapping or PositionScheme.
        pretrained: True for the weights of the tag, which timm fetches; or the path of a file (.safetensors, .pth) or
            a folder with one. A class token that the scheme does not read out is dropped with its row, tables are
            resampled, a head for other classes starts anew.
        preserve: As in `convert`; None is True where weights are loaded that deliver no positions yet.
        timm_args: Every other argument of `timm.create_model` (img_size, in_chans, num_classes, drop_path_rate, ...).

    Returns:
        The model, in training mode as timm's are.

    Raises:
        ValueError: There is no such model or scheme, or the model is not converted.
        UserError: The weights cannot be read or do not fit.
    """
    start = starting_point(name, scheme, pretrained=pretrained, preserve=preserve)
    model, told = start.build(name, scheme, **timm_args)
    for what in told:
        warnings.warn(f"{name} from {pretrained}: {what}.", stacklevel=2)
    return model


def build(name: str, scheme: SchemeLike, *, preserve: bool = False, **timm_args: Any) -> Any:
    """Build a model by its name, ours or timm's, without weights unless timm fetches them.

    Args:
        name: As for `create_model`.
        scheme: Likewise.
        preserve: Whether positions have gates, as those of a conversion that preserves the function.
        timm_args: Every other argument of `timm.create_model`.
    """
    if name in timm.list_models("mpvg_*") and not preserve:
        return timm.create_model(name, scheme=scheme, **timm_args)
    return timm.create_model(ENTRY, base=name, scheme=scheme, preserve=preserve, **timm_args)


def starting_point(
    name: str, scheme: SchemeLike, *, pretrained: bool | str | Path = False, preserve: bool | None = None
) -> Start:
    """Return what the model that `create_model` makes starts from; arguments are its.

    Raises:
        UserError: There is no such model, or the weights cannot be read.
    """
    check_name(name)
    parsed = PositionScheme.parse(scheme)
    gated = bool(pretrained) and preserve is not False and (parsed.layerwise or parsed.last_norm is not None)
    arguments = {"preserve": True} if gated else {}
    if pretrained is True:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if name.startswith("mpvg_") or cfg is None:
            raise UserError(
                f"pretrained=True: nobody has published weights of {name}. Name a file of weights, or create timm's "
                "architecture of that kind (such as 'deit_tiny_patch16_224.fb_in1k'), whose weights timm fetches."
            )
        return Start(arguments, pretrained, normalisation=(tuple(cfg.mean), tuple(cfg.std)))
    if not pretrained:
        return Start(arguments, pretrained)
    weights = read_weights(pretrained)
    if any("norm_pos." in key for key in weights):
        arguments = {"preserve": True} if any("ls_pos." in key for key in weights) else {}
    return Start(arguments, pretrained, weights, read_normalisation(pretrained))


def check_name(name: str) -> str:
    """Return the name of a model that can be built under a scheme.

    Args:
        name: Ours or timm's, with a tag or without.

    Raises:
        UserError: There is no such model.
    """
    ours, others = timm.list_models("mpvg_*"), timm_architectures()
    architecture = name.partition(".")[0]
    if name not in ours and architecture not in others and ":" not in name:
        raise UserError(
            f"model {name!r} is unknown{nearest(architecture, [*ours, *others])}: use one of {', '.join(ours)}, or one "
            "of timm's plain vision transformers and Swins."
        )
    return name


@register_model
def mpvg(
    pretrained: bool = False,
    *,
    base: str | None = None,
    base_args: Mapping[str, Any] | None = None,
    scheme: SchemeLike = "mpvg",
    preserve: bool = True,
    global_pool: str | None = None,
    pretrained_cfg: Any = None,
    out_indices: Any = 3,
    **timm_args: Any,
) -> nn.Module:
    """A converted model, built again from what it was: `timm.create_model("mpvg", base=..., scheme=...)`.

    Args:
        pretrained: Load the weights that `pretrained_cfg` names, of a saved model; without one, timm's of the base.
        base: timm's name of the architecture, or ours.
        base_args: What `timm.create_model` was told of it before it was converted.
        scheme: Position scheme.
        preserve: Whether its positions have gates.
        global_pool: Its pooling, if that was changed afterwards.
        pretrained_cfg: Configuration of saved weights, as timm hands it over.
        out_indices: As in timm, with features_only.
        timm_args: Every other argument of timm.
    """
    if not base:
        raise ValueError("timm.create_model('mpvg') needs base=..., the name of the architecture to convert.")
    wanted = PositionScheme.parse(scheme)
    timm_args = {**(base_args or {}), **timm_args}  # timm would set what it is not told, such as img_size
    of_base = {"scheme": "default" if wanted.class_token else "gap"} if base.startswith("mpvg_") else {}
    fetch = pretrained and pretrained_cfg is None
    overlay, cache_dir = timm_args.pop("pretrained_cfg_overlay", None), timm_args.pop("cache_dir", None)

    def build(**changes: Any) -> Any:
        fetched = {"pretrained": True, "pretrained_cfg_overlay": overlay, "cache_dir": cache_dir} if fetch else {}
        source = timm.create_model(base, **{**of_base, **changes}, **fetched)
        with warnings.catch_warnings():
            if not fetch:  # then nothing trained is lost
                warnings.simplefilter("ignore")
            model = convert(source, scheme, preserve=preserve, allow_readout_change=True)
        if global_pool is not None and global_pool != model.global_pool:
            model.reset_classifier(model.num_classes, global_pool)
        return model

    if pretrained_cfg is None:
        found = timm.get_pretrained_cfg(base.partition(":")[2] or base, allow_unregistered=True)
        pretrained_cfg = {**(found.to_dict() if found else {}), "architecture": ENTRY}
    return build_model_with_cfg(
        build,
        ENTRY,
        pretrained=pretrained and not fetch,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=None if fetch else overlay,
        pretrained_filter_fn=filter_checkpoint,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        cache_dir=cache_dir,
        **timm_args,
    )
