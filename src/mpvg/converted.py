"""The registered model "mpvg": a converted one, built again from {base, scheme}, as timm's registry asks for it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from mpvg.convert import convert
from mpvg.models.arguments import note_arguments
from mpvg.models.common import cfg
from mpvg.models.weights import filter_checkpoint
from mpvg.published import ENTRY
from mpvg.scheme import PositionScheme, SchemeLike

default_cfgs = generate_default_cfgs({ENTRY: cfg()})


@register_model
def mpvg(
    pretrained: bool = False,
    *,
    base: str = "deit_tiny_patch16_224",
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
        global_pool: Pooling of the base; beside base_args that name one, its pooling after conversion.
        pretrained_cfg: Configuration of saved weights, as timm hands it over.
        out_indices: As in timm, with features_only.
        timm_args: Every other argument of timm.
    """
    wanted = PositionScheme.parse(scheme)
    is_ours = base.startswith("mpvg_")  # its pooling is as its scheme says
    later_pool = global_pool if is_ours or "global_pool" in (base_args or {}) else None
    if global_pool and later_pool is None and (global_pool == "token") != wanted.class_token:
        raise ValueError(
            f"global_pool={global_pool!r} contradicts scheme {str(wanted)!r}, which reads out "
            f"{'the class token' if wanted.class_token else 'the mean over tokens'}: leave global_pool out."
        )
    # timm would set what it is not told, such as img_size
    timm_args = {"global_pool": global_pool, **(base_args or {}), **timm_args}
    of_base = {}
    if is_ours:
        of_base = {"scheme": "default" if wanted.class_token else "gap"}
        timm_args.pop("global_pool")
    fetch = pretrained and pretrained_cfg is None
    overlay, cache_dir = timm_args.pop("pretrained_cfg_overlay", None), timm_args.pop("cache_dir", None)

    def convert_base(**changes: Any) -> Any:
        fetched = {"pretrained": True, "pretrained_cfg_overlay": overlay, "cache_dir": cache_dir} if fetch else {}
        try:
            source = timm.create_model(base, **{**of_base, **changes}, **fetched)
        except AssertionError as error:  # timm's word for arguments that do not go together
            raise ValueError(f"{base}: timm says that its arguments do not go together. {error}") from error
        with warnings.catch_warnings():
            if not fetch:  # then nothing trained is lost
                warnings.simplefilter("ignore")
            model = convert(source, scheme, preserve=preserve, allow_readout_change=True)
        if later_pool is not None and later_pool != model.global_pool:
            model.reset_classifier(model.num_classes, later_pool)
        return model

    if pretrained_cfg is None:
        found = timm.get_pretrained_cfg(base.partition(":")[2] or base, allow_unregistered=True)
        pretrained_cfg = {**(found.to_dict() if found else {}), "architecture": ENTRY}
    built = build_model_with_cfg(
        convert_base,
        ENTRY,
        pretrained=pretrained and not fetch,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=None if fetch else overlay,
        pretrained_filter_fn=filter_checkpoint,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        cache_dir=cache_dir,
        **timm_args,
    )
    own = {"base": base, "base_args": base_args, "preserve": preserve, "global_pool": global_pool}
    note_arguments(built, {**own, **timm_args})
    return built
