"""What the MPVG paper prints of its own analysis, all of DeiT-Ti; the figures' captions give its values."""

from __future__ import annotations

from typing import Any, Final

_MODEL: Final = "mpvg_deit_tiny_patch16_224"
_SHAPE: Final = (12, 192, 196)  # blocks, width, patches

FIGURE_2: Final = {1: -0.37, 4: -0.67, 7: -0.82, 9: -0.85, 11: -0.95}
"""Correlation by block. Assumption: drawn is lape_gap; the paper says no more than that positions are layer-wise."""

FIGURE_6: Final = {
    "pvg": {"cosine": 0.2995, "var_beta": 0.2387},
    "mpvg": {"var_beta": 0.0193},
    "pvg_cls": {"cosine": 0.4597},
}
"""At the Last LN, by scheme, by the names of `LastNormStatistics`."""


def printed_correlations(model_name: str, model: Any) -> dict[int, float]:
    """Return the correlations that figure 2 prints, by block, for a model like the one it draws; else nothing.

    That is DeiT-Ti under any scheme with layer-wise positions and average pooling.
    """
    layerwise = any(getattr(getattr(model, "plan", None), "blocks", ()))
    return FIGURE_2 if _is_drawn(model_name, model) and layerwise and not model.has_class_token else {}


def printed_at_last_norm(model_name: str, scheme: str, model: Any) -> dict[str, float]:
    """Return what figure 6 prints for a model and scheme; else nothing."""
    return FIGURE_6.get(scheme, {}) if _is_drawn(model_name, model) else {}


def _is_drawn(model_name: str, model: Any) -> bool:
    if model_name != _MODEL:
        return False
    shape: tuple[int, int, int] = len(model.blocks), model.embed_dim, model.patch_embed.num_patches
    return shape == _SHAPE
