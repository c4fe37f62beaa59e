"""An encoder of transformers turned into a layer-wise one; `mpvg.convert` calls it. transformers is never imported."""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from torch import nn

from mpvg.blocks import norm_like, receive
from mpvg.encoder import (
    ApartTable,
    BertLike,
    DistilBertLike,
    LayerwiseEncoder,
    PositionedAttention,
    PositionedLayer,
    derived,
)
from mpvg.position import Blocks
from mpvg.scheme import PositionScheme, SchemeLike


class Shape(NamedTuple):
    """Where an encoder has its parts.

    mixin: what its class is mixed with.
    layers: the list of layers, in the encoder.
    attention: the self-attention, in a layer.
    norm: the norm that a layer ends with, in the layer.
    """

    mixin: type[LayerwiseEncoder]
    layers: str
    attention: str
    norm: str


_BERT: Final = Shape(BertLike, "encoder.layer", "attention.self", "output.LayerNorm")
_DISTILBERT: Final = Shape(DistilBertLike, "transformer.layer", "attention", "output_layer_norm")
_SHAPES: Final[Mapping[tuple[str, str], Shape]] = {
    ("transformers.models.bert.modeling_bert", "BertModel"): _BERT,
    ("transformers.models.roberta.modeling_roberta", "RobertaModel"): _BERT,
    ("transformers.models.xlm_roberta.modeling_xlm_roberta", "XLMRobertaModel"): _BERT,
    ("transformers.models.camembert.modeling_camembert", "CamembertModel"): _BERT,
    ("transformers.models.electra.modeling_electra", "ElectraModel"): _BERT,
    ("transformers.models.distilbert.modeling_distilbert", "DistilBertModel"): _DISTILBERT,
}


def concerns(model: Any) -> bool:
    """Return whether a model is, or holds, one of transformers' that `convert_encoder` has something to say about."""
    classes = type(model).__mro__
    return any(cls.__module__.startswith("transformers.") for cls in classes) or _held(model) is not None


def convert_encoder(model: nn.Module, scheme: SchemeLike = "mpvg", *, preserve: bool = True) -> Any:
    """Turn an encoder of transformers into a layer-wise one.

    A position joins what q, k and v of a layer read, not its residual; the Last LN is the norm that the last layer ends
    with. [CLS] is a token with a row of the position table like any other, and what is read out is for a head to say:
    every scheme is accepted, and `class_token` decides nothing here.

    Args:
        model: A BertModel, DistilBertModel, RobertaModel, XLMRobertaModel, CamembertModel or ElectraModel, or one of
            transformers' models with a head on such an encoder, whose encoder is then converted. It is left as it is.
        scheme: Preset name, text, mapping or PositionScheme.
        preserve: Start from the function that the model computes, by a gate a layer (`ls_pos.gamma`); see
            `mpvg.convert`.

    Returns:
        A new model with the weights, modes, device and frozen parameters of `model`; its encoder has `scheme`, `plan`
        and `positions(length)`. What could not be kept is told by a UserWarning.

    Raises:
        ValueError: A model of another kind.

    Source:
        Not in the papers, which have vision transformers only.
    """
    reason = why_not(model)
    if reason:
        raise ValueError(reason)
    wanted = PositionScheme.parse(scheme)
    converted: Any = copy.deepcopy(model)
    lost = _make_layerwise(_encoder_of(converted), wanted, preserve=preserve)
    if lost:
        warnings.warn(f"converted to scheme {str(wanted)!r}: {lost}.", stacklevel=3)
    return converted


def why_not(model: Any) -> str | None:
    """Return why `convert_encoder` refuses a model, or None where it does not."""
    name, encoder = type(model).__name__, _encoder_of(model)
    if isinstance(encoder, LayerwiseEncoder):
        return (
            f"{name} is converted already, to scheme {str(encoder.scheme)!r}: convert the model that it was made from."
        )
    if encoder is None:
        return _why_not_known(model)
    config = encoder.config
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return (
            f"this {name} is a decoder (is_decoder or add_cross_attention in its config), whose tokens come one by one "
            "or read another model's: schemes are for encoders, use a config without them."
        )
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    table = getattr(encoder.embeddings, "position_embeddings", None)
    if kind != "absolute" or type(table) is not nn.Embedding:
        return (
            f"this {name} has positions of type {kind!r} and a position table of {type(table).__name__}: only a table "
            "of absolute positions (an Embedding) can be delivered, use position_embedding_type='absolute'."
        )
    shape = _SHAPES[_key(encoder)]
    layers = encoder.get_submodule(shape.layers)
    width = layers[0].get_submodule(shape.norm).weight.shape[0] if len(layers) else table.embedding_dim
    if table.embedding_dim != width:
        return (
            f"this {name} has positions of width embedding_size={table.embedding_dim} and layers of width "
            f"hidden_size={width}: a layer's norm cannot read them, use a model where the two are equal."
        )
    for path, part in _changed(encoder).items():
        if not _runs_its_class(part):
            return (
                f"{path or name} has a forward of its own, such as accelerate's hooks put on, which would pass "
                "positions by: take it off, convert, and put it on again."
            )
    runs = encoder.get_submodule(shape.layers.rpartition(".")[0])
    if not all(_hands_on(part) for part in (encoder, runs, *layers)):
        version = getattr(sys.modules.get("transformers"), "__version__", "of this version")
        return f"transformers {version} hands nothing further on to the layers of {name}: use transformers>=5."
    return None


def _why_not_known(model: Any) -> str:
    name, inside = type(model).__name__, _held(model)
    known = ", ".join(cls for _, cls in _SHAPES)
    if inside is not None:
        return (
            f"{name} is not converted as a whole: convert the encoder that it holds, "
            f"model.{inside} = mpvg.convert(model.{inside}, ...)."
        )
    bases = [cls for cls in type(model).__mro__[1:] if (cls.__module__, cls.__name__) in _SHAPES]
    relative = any("relative" in part or "rotary" in part for part, _ in model.named_modules())
    if bases:
        why = f"it may compute something else than {bases[0].__name__}, which it derives from"
    elif relative:
        why = "its positions are relative or rotary, and act inside the attention"
    else:
        why = "where its layers take positions is not known"
    return f"{name} of transformers is not converted, {why}: only {known} are, and models with a head on one."


def _changed(encoder: Any) -> dict[str, Any]:
    """Return by path the modules of an encoder that get another class."""
    shape = _SHAPES[_key(encoder)]
    changed = {"": encoder}
    for i, layer in enumerate(encoder.get_submodule(shape.layers)):
        changed[f"{shape.layers}.{i}"] = layer
        changed[f"{shape.layers}.{i}.{shape.attention}"] = layer.get_submodule(shape.attention)
    return changed


def _runs_its_class(module: Any) -> bool:
    own = vars(module).get("forward")
    return own is None or getattr(own, "__func__", None) is type(module).forward


def _hands_on(module: nn.Module) -> bool:
    """Return whether a module's forward takes further arguments by name, which transformers hands on to its parts."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(module.forward).parameters.values())


def _key(model: Any) -> tuple[str, str]:
    return type(model).__module__, type(model).__qualname__


def _held(model: nn.Module) -> str | None:
    """Return the path of the first encoder of a known class within a model; None for none."""
    return next((path for path, part in model.named_modules() if _key(part) in _SHAPES), None)


def _encoder_of(model: Any) -> Any:
    """Return a model itself, or the encoder below its head, where that is transformers' own; None for another model."""
    prefix = getattr(model, "base_model_prefix", None)
    encoder = model if _key(model) in _SHAPES or not prefix else getattr(model, prefix, None)
    return encoder if _key(encoder) in _SHAPES and type(encoder).__module__ == type(model).__module__ else None


def _make_layerwise(encoder: Any, scheme: PositionScheme, *, preserve: bool) -> str | None:
    """Convert an encoder in place, and return what is lost by that."""
    shape = _SHAPES[_key(encoder)]
    layers = encoder.get_submodule(shape.layers)
    plan = scheme.plan(len(layers))
    last_norm = layers[-1].get_submodule(shape.norm)
    for part in _changed(encoder).values():
        vars(part).pop("forward", None)  # transformers 5.0 leaves the method there, after recording hidden states
    for place, (layer, source) in enumerate(zip(layers, plan.blocks, strict=True)):
        receive(layer, source, gated=preserve, norm=layer.get_submodule(shape.norm))
        layer.ls_pos.train(layer.training)
        attention = layer.get_submodule(shape.attention)
        attention.__class__ = derived((PositionedAttention, type(attention)))
        layer.__class__ = derived((PositionedLayer, type(layer)))
        layer.place, layer.is_last = place, place == len(layers) - 1
    layers.__class__ = Blocks
    encoder.__class__ = derived((shape.mixin, type(encoder)))
    encoder.scheme, encoder.plan = scheme, plan
    encoder.norm_pos = None if plan.last is None else norm_like(last_norm)
    if preserve and encoder.norm_pos is not None:
        for parameter in encoder.norm_pos.parameters():
            nn.init.zeros_(parameter)
    if plan.join_input:
        return None
    table = encoder.embeddings.position_embeddings
    table.__class__ = ApartTable
    if not plan.uses_positions:
        table.weight.requires_grad_(False)  # or data-parallel training would wait for its gradient
    return "the position table no longer joins the input, which changes what the model computes"
