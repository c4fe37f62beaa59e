"""Checkpoints of other grids, schemes and layouts, made to fit a model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from math import isqrt
from typing import Any, Final, TypeVar

import torch
from timm.models import adapt_input_conv, swin_transformer, vision_transformer
from torch import Tensor, nn

from mpvg.errors import UserError
from mpvg.models.architectures import nearest_architecture
from mpvg.position import Layerwise
from mpvg.scheme import SCHEMES
from mpvg.tables import resize_table
from mpvg.weight_files import WRAPPERS

Model = TypeVar("Model", bound=nn.Module)

OFFICIAL_NAMES: Final = {  # by a name's beginning that only this family's official code has: what to write for what
    "tokens_to_token.": ((r"^tokens_to_token\.", "patch_embed.proj."),),
    "i2t.": (
        (r"^i2t\.backbone\.", "patch_embed.proj."),
        (r"^i2t\.proj\.", "patch_embed.proj.proj."),
        (r"\.leff\.|\.feedforward\.", ".mlp."),
        (r"^pos_layer_embed$", "lca.pos_embed"),
    ),
    "tokenizer.": (
        (r"^tokenizer\.conv_layers\.0\.0\.", "patch_embed.proj."),
        (r"^classifier\.fc\.", "head."),
        (r"^classifier\.", ""),
        (r"^class_emb$", "cls_token"),
        (r"^positional_emb$", "pos_embed"),
        (r"\.norm1\.", ".norm2."),
        (r"\.pre_norm\.", ".norm1."),
        (r"\.self_attn\.", ".attn."),
        (r"\.linear([12])\.", r".mlp.fc\1."),
    ),
    "absolute_pos_embed": ((r"^absolute_pos_embed$", "pos_embed"),),  # the rest of Swin's timm knows
    "blocks.0.pe_norm.": ((r"\.pe_norm\.", ".norm_pos."),),  # LaPE's DeiT
    "spm.": (  # ViT-Adapter's
        (r"^(pos_embed$|patch_embed\.|blocks\.)", r"trunk.\1"),
        (r"^spm\.", "spatial_prior."),
        (r"\.dwconv\.dwconv\.", ".conv."),
        (r"\.gamma([12])$", r".ls\1.gamma"),
    ),
}


def load_official(model: Model, state_dict: Mapping[str, Any]) -> Model:
    """Load a state dict of an architecture's official code, as that code wrote it.

    Known are DeiT, Swin (ape=True), CeiT, T2T-ViT, Compact Transformers' ViT-Lite, LaPE's DeiT and ViT-Adapter. A class
    token that the model's scheme lacks is dropped with its row; position norms that the official model lacks keep their
    values.

    Args:
        model: A model of this library, changed in place.
        state_dict: Weights by their official names; may lie under "model", "state_dict" or "state_dict_ema".

    Returns:
        The model.

    Raises:
        ValueError: The model is not one of this library's, or the weights are another architecture's.
    """
    if not isinstance(getattr(model, "trunk", model), Layerwise):  # ViT-Adapter has one
        raise ValueError(
            f"load_official fills models of mpvg, got {type(model).__name__}: create an 'mpvg_*' one. "
            "Models whose only positions are relative or rotary are out of scope."
        )
    weights, own = filter_checkpoint(state_dict, model, is_official=True), model.state_dict()
    kept = {name for name in own if name.endswith(".num_batches_tracked")}
    if not any("norm_pos." in name for name in weights):
        kept |= {name for name in own if "norm_pos." in name}
    extra, missing = sorted(set(weights) - set(own)), sorted(set(own) - set(weights) - kept)
    if extra or missing:
        what = f"has {extra[0]!r}, which the model lacks" if extra else f"lacks {missing[0]!r}"
        raise ValueError(
            f"the state dict {what} ({len(extra)} names too many, {len(missing)} missing): create the architecture "
            "that it was saved from, with its depth, under a scheme that it can fill."
        )
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} in the state dict and {tuple(own[name].shape)} in the model: "
                "create it with the same sizes and num_classes, load, then call reset_classifier or set_input_size."
            )
    model.load_state_dict(weights, strict=False)
    return model


def load_weights(
    model: Any,
    weights: Mapping[str, Any],
    *,
    what: str,
    image_size: tuple[int, int] | None = None,
    preserve: bool = True,
) -> list[str]:
    """Load weights of a plain or a layer-wise model, at another size, of other classes or channels.

    Position norms and gates that plain weights lack keep their start, and so does a head for other classes.

    Args:
        model: A model of this library, changed in place.
        weights: State dict, by timm's or official names.
        what: Where they come from, for the message.
        image_size: Of the images that they were trained on (H, W), where that is known.
        preserve: Whether a table that timm's Swin lacks starts at zero where it joins the input, as in `convert`.

    Returns:
        What was not taken over, in words.

    Raises:
        UserError: The weights are another architecture's.
    """
    own, given = model.state_dict(), dict(weights)
    try:
        weights = filter_checkpoint(weights, model, image_size=image_size)
        _adapt_channels(weights, model)
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{what} does not fit {_named(model)}: {said}.{_nearest(given)}") from error
    told = _settle_class_token(weights, own, given, model) + _drop_head(weights, own, model)
    patches = [tuple(found.get("patch_embed.proj.weight", torch.empty(0)).shape[2:]) for found in (given, own)]
    if all(patches) and patches[0] != patches[1]:
        told.append("the patch embedding is resampled from {} x {} to {} x {} pixels".format(*patches[0], *patches[1]))
    kept = {name for name in own if name.endswith(".num_batches_tracked")}
    new = {name for name in own if re.search(r"(^|\.)(norm_pos|ls_pos)\.", name)}
    if new.isdisjoint(weights):
        kept |= new
    if (
        isinstance(model, swin_transformer.SwinTransformer)
        and model.pos_embed is not None
        and "pos_embed" not in weights
    ):
        kept.add("pos_embed")
        told.append("the position table is new")
        if preserve and model.joins_input:
            nn.init.zeros_(model.pos_embed)
    absent = kept | _head_names(model)
    misfits = {
        "missing": [name for name in own if name not in weights and name not in absent],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(given.get(name, weights[name]).shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ],
    }
    found = [f"{len(names)} {kind} ({', '.join(names[:3])})" for kind, names in misfits.items() if names]
    if found:
        remedy = _other_scheme(given, model, misfits) or _nearest(given)
        raise UserError(f"{what} does not fit {_named(model)}: {'; '.join(found)}.{remedy}")
    model.load_state_dict(weights, strict=False)
    return told


def _settle_class_token(
    weights: dict[str, Tensor], own: Mapping[str, Tensor], given: Mapping[str, Any], model: Any
) -> list[str]:
    """Begin a class token anew that the weights lack, and tell; `filter_checkpoint` drops one too many."""
    if "cls_token" in own and "cls_token" not in weights:
        weights["cls_token"] = own["cls_token"]
        table = weights.get("pos_embed")
        if table is not None and model.has_class_row and table.shape[1] == own["pos_embed"].shape[1] - 1:
            weights["pos_embed"] = torch.cat([own["pos_embed"][:, :1], table], dim=1)
        return ["the class token is new and untrained"]
    if "cls_token" not in own and any(name.endswith("cls_token") for name in given):
        return ["the class token is dropped, and the mean over the patch tokens is read out"]
    return []


def _other_scheme(weights: Mapping[str, Any], model: Any, misfits: Mapping[str, list[str]]) -> str:
    """Name the schemes that have the position norms of layer-wise weights, where nothing else is wrong with them."""
    pattern = r"(.*\.)?(norm_pos|ls_pos)\.\w+|cls_token|pos_embed"
    wrong = [name.partition(" ")[0] for names in misfits.values() for name in names]
    if not all(re.fullmatch(pattern, name) for name in wrong) or wrong == ["pos_embed"]:
        return ""
    is_swin = isinstance(model, swin_transformer.SwinTransformer)
    parts = [part.removesuffix("norm1.weight") for part in model.state_dict() if part.endswith(".norm1.weight")]
    blocks = [f"{part}norm_pos.weight" in weights for part in parts]
    fitting = []
    for name, scheme in SCHEMES.items():
        if len(parts) < 2 and scheme.layerwise:
            continue  # it may have no meaning
        plan = scheme.plan(len(parts), first_block=is_swin)
        found = ([source is not None for source in plan.blocks], plan.last is not None, scheme.class_token)
        if found == (blocks, "norm_pos.weight" in weights, "cls_token" in weights):
            fitting.append(f"scheme={name!r}")
    return f" They are weights of another scheme: use {' or '.join(fitting)}." if fitting else ""


def _adapt_channels(weights: dict[str, Tensor], model: Any) -> None:
    """Sum or repeat the first convolution's channels, as timm does for images of another number of them."""
    first = model.pretrained_cfg.get("first_conv") or ()
    tells_base = "base_chans" in inspect.signature(adapt_input_conv).parameters  # not in timm 1.0.26, which expects 3
    for name in (first,) if isinstance(first, str) else first:
        kernel = weights.get(f"{name}.weight")
        own = dict(model.named_parameters()).get(f"{name}.weight")
        if kernel is not None and own is not None and kernel.shape[1] != own.shape[1]:
            base = {"base_chans": kernel.shape[1]} if tells_base else {}
            weights[f"{name}.weight"] = adapt_input_conv(own.shape[1], kernel, **base)


def _head_names(model: Any) -> set[str]:
    classifier = model.pretrained_cfg.get("classifier") or ()
    return {
        f"{name}.{part}"
        for name in ((classifier,) if isinstance(classifier, str) else classifier)
        for part in ("weight", "bias")
    }


def _drop_head(weights: dict[str, Tensor], own: Mapping[str, Tensor], model: Any) -> list[str]:
    """Leave out a head for other classes, and tell."""
    names = _head_names(model)
    if all(name in weights and name in own and weights[name].shape == own[name].shape for name in names):
        return []
    for name in names:
        weights.pop(name, None)
    return ["the head is new and untrained"] if names & set(own) else []


def _named(model: Any) -> str:
    arguments = getattr(model, "_model_args", {})
    return f"{arguments.get('base') or model.pretrained_cfg.get('architecture')} under scheme {str(model.scheme)!r}"


def _nearest(weights: Mapping[str, Any]) -> str:
    name, fitting = nearest_architecture(weights)
    return f" {fitting} of its {len(weights)} tensors fit {name}." if name else ""


def filter_checkpoint(
    state_dict: Mapping[str, Any],
    model: Any,
    *,
    is_official: bool = False,
    image_size: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """Return `state_dict` by the model's names, with its position table and class token fitted to the model.

    A class token that the model lacks is dropped with its row, a learned table is resampled to the model's grid and a
    sinusoid of another length is the model's own. Everything else is left to timm's filter for the architecture.

    Args:
        state_dict: Weights by timm's or official names; may lie under "model", "state_dict" or "state_dict_ema".
        model: The model that is to load them.
        is_official: Whether the table's grid is square wherever it can be. Otherwise a table of as many rows as the
            model's is taken to have the model's grid.
        image_size: Of the images that the weights were trained on (H, W); None for what a shared model's configuration
            says, if it is one.

    Returns:
        Weights by the model's names.

    Raises:
        ValueError: The table has a number of rows that no known grid explains.
    """
    weights = _by_our_names(state_dict)
    if hasattr(model, "filter_checkpoint"):  # of sequences
        return model.filter_checkpoint(weights)
    trunk = getattr(model, "trunk", None)
    if trunk is not None:
        of_trunk = {name: weights.pop(name) for name in list(weights) if name.startswith("trunk.")}
        plain = {name.removeprefix("trunk."): value for name, value in of_trunk.items()}
        plain = filter_checkpoint(plain, trunk, is_official=is_official, image_size=image_size)
        return {**{f"trunk.{name}": value for name, value in plain.items()}, **weights}
    table = weights.pop("pos_embed", None)
    kernel = "patch_embed.proj.weight"  # timm's filters look for the model's own, which a family with a stem has not
    foreign = (
        {} if hasattr(model.patch_embed.proj, "weight") or kernel not in weights else {kernel: weights.pop(kernel)}
    )
    has_class_token = "cls_token" in weights
    source_grid = _source_grid(image_size, weights | foreign, model)
    is_swin = isinstance(model, swin_transformer.SwinTransformer)
    headless = is_swin and not any(name.startswith(("head.", "layers.0.downsample.")) for name in weights)
    if headless:  # timm 1.0.26 knows Swin's own names by its head alone
        weights["head.fc.weight"] = torch.empty(0)
    weights = (swin_transformer if is_swin else vision_transformer).checkpoint_filter_fn(weights, model) | foreign
    if headless:
        del weights["head.fc.weight"]
    if not model.has_class_token:
        weights.pop("cls_token", None)
    if model.pos_embed is not None and model.pos_kind != "learn":
        own = model.pos_embed.detach()
        weights["pos_embed"] = own if table is None or table.numel() != own.numel() else table.reshape(own.shape)
    elif model.pos_embed is not None and table is not None:
        table = _drop_register_rows(table, has_class_token, weights, model)
        rows = _fit_table(table, has_class_token, model, is_official, source_grid)
        weights["pos_embed"] = rows.unflatten(1, model.patch_embed.grid_size) if model.pos_embed.ndim == 4 else rows
    return weights


def _by_our_names(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights by our names for what official code has other ones for, without what wrappers put around them."""
    state_dict = next((state_dict[name] for name in WRAPPERS if isinstance(state_dict.get(name), Mapping)), state_dict)
    weights = {name.removeprefix("module."): value for name, value in state_dict.items()}
    for beginning, names in OFFICIAL_NAMES.items():
        if any(name.startswith(beginning) for name in weights):
            for pattern, ours in names:
                weights = {re.sub(pattern, ours, name): value for name, value in weights.items()}
            table = weights.get("trunk.pos_embed")
            if table is not None and isqrt(table.shape[1] - 1) ** 2 == table.shape[1] - 1:
                weights["trunk.pos_embed"] = table[:, 1:]  # it has a row for a class token that is not there
    return weights


def _drop_register_rows(table: Tensor, has_class_token: bool, weights: dict[str, Tensor], model: Any) -> Tensor:
    """Add the registers' rows of timm's table to the registers, as `make_layerwise` does."""
    if table.ndim != 3 or "reg_token" not in weights:
        return table
    first, registers = int(has_class_token), weights["reg_token"].shape[1]
    patches, grid = table.shape[1] - first - registers, model.patch_embed.grid_size
    if table.shape[1] - first == grid[0] * grid[1] or (patches != grid[0] * grid[1] and isqrt(patches) ** 2 != patches):
        return table
    weights["reg_token"] = weights["reg_token"] + table[:, first : first + registers]
    return torch.cat([table[:, :first], table[:, first + registers :]], dim=1)


def _source_grid(
    image_size: tuple[int, int] | None, weights: Mapping[str, Tensor], model: Any
) -> tuple[int, int] | None:
    """Return the grid (H, W) that weights were trained at, where it is known."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if image_size is None and cfg.get("source") in ("local-dir", "hf-hub"):
        image_size = tuple(cfg["input_size"][1:])
    kernel, plain = weights.get("patch_embed.proj.weight"), hasattr(model.patch_embed.proj, "weight")
    patch = kernel.shape[2:] if kernel is not None and kernel.ndim == 4 and plain else model.patch_embed.patch_size
    return image_size and (image_size[0] // patch[0], image_size[1] // patch[1])


def _fit_table(
    table: Tensor, has_class_token: bool, model: Any, is_official: bool, source_grid: tuple[int, int] | None
) -> Tensor:
    grid, class_row, old_size = model.patch_embed.grid_size, False, None
    if table.ndim == 4:
        old_size, table = (table.shape[1], table.shape[2]), table.flatten(1, 2)
    # a class token's row cannot be told from its shape alone: 196 rows are 14 x 14 patches, not a class token and 195
    for with_row in (has_class_token, False) if old_size is None else ():
        patches = table.shape[1] - with_row
        square = (isqrt(patches), isqrt(patches)) if isqrt(patches) ** 2 == patches else None
        same = grid if patches == grid[0] * grid[1] else None
        known = source_grid if source_grid and source_grid[0] * source_grid[1] == patches else None
        old_size = known or ((square or same) if is_official else (same or square))
        if old_size is not None:
            class_row = with_row
            break
    if old_size is None:
        raise ValueError(
            f"pos_embed has {table.shape[1]} rows, which is no square grid and not the model's {grid[0]} x {grid[1]}: "
            "build the model at the checkpoint's image size, load it, then call set_input_size."
        )
    if class_row and not model.has_class_row:
        table, class_row = table[:, 1:], False
    return resize_table(table, model.pos_kind, grid, old_size, class_row)
