"""`mpvg.create_model`: a model by timm's name or ours, under any scheme, from scratch or from weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from mpvg.convert import ENTRY, convert
from mpvg.errors import UserError, nearest
from mpvg.models.architectures import timm_architectures
from mpvg.models.weights import filter_checkpoint, load_weights
from mpvg.scheme import PositionScheme, SchemeLike
from mpvg.weight_files import read_weights


class Start(NamedTuple):
    """Where a model starts from.

    model: Name for `timm.create_model`: registered by us, or "mpvg" for a converted one.
    arguments: What it must be told beside the scheme.
    weights: To be loaded into it; None for none, or for those that timm fetches.
    """

    model: str
    arguments: dict[str, Any]
    weights: dict[str, Tensor] | None


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
    model = timm.create_model(start.model, scheme=scheme, pretrained=pretrained is True, **start.arguments, **timm_args)
    if start.weights is not None:
        inner = getattr(model, "model", model)  # of features_only
        for what in load_weights(inner, start.weights, what=str(pretrained)):
            warnings.warn(f"{pretrained}: {what}.", stacklevel=2)
    return model


def starting_point(
    name: str, scheme: SchemeLike, *, pretrained: bool | str | Path = False, preserve: bool | None = None
) -> Start:
    """Return how to build the model that `create_model` makes; arguments are its.

    Raises:
        UserError: There is no such model, or the weights cannot be read.
    """
    ours = name in timm.list_models("mpvg_*")
    if not ours:
        _check_base(name)
    if pretrained is True and ours:
        raise UserError(
            f"pretrained=True: nobody has published weights of {name}. Name a file of weights, or create timm's "
            "architecture of that kind (such as 'deit_tiny_patch16_224.fb_in1k'), whose weights timm fetches."
        )
    weights = None if isinstance(pretrained, bool) else read_weights(pretrained)
    if weights is not None and any("norm_pos." in key for key in weights):
        gated = any("ls_pos." in key for key in weights)
    else:
        parsed = PositionScheme.parse(scheme)
        positions = parsed.layerwise or parsed.last_norm is not None
        gated = bool(pretrained) and preserve is not False and positions
    if ours and not gated:
        return Start(name, {}, weights)
    return Start(ENTRY, {"base": name, "preserve": gated}, weights)


def _check_base(name: str) -> None:
    known = timm_architectures()
    architecture = name.partition(".")[0]
    if architecture not in known and not (timm.is_model(architecture) or ":" in name):
        raise UserError(
            f"model {name!r} is unknown{nearest(architecture, [*known, *timm.list_models('mpvg_*')])}: use an 'mpvg_*' "
            "name, or one of timm's plain vision transformers and Swins."
        )


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
    of_base = dict(base_args or {})
    if base.startswith("mpvg_"):
        of_base["scheme"] = "default" if wanted.class_token else "gap"
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
