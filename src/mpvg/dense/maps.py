"""The four maps that a backbone gives and every head reads."""

from __future__ import annotations

from typing import Any, Final

from mpvg.errors import UserError

STRIDES: Final = (4, 8, 16, 32)


def widths_of(backbone: Any) -> list[int]:
    """Return the channels of a backbone's four maps.

    Args:
        backbone: With timm's `feature_info`, of what it gives or of all that it could.

    Raises:
        UserError: Its maps have other strides.
    """
    info = getattr(backbone, "feature_info", ())
    levels: list[dict[str, Any]] = list(info.get_dicts() if hasattr(info, "get_dicts") else info)
    found = tuple(level["reduction"] for level in levels)
    if found != STRIDES:
        raise UserError(
            f"{type(backbone).__name__} gives maps of strides {found}, and the heads read {STRIDES}: take an "
            "mpvg_vit_adapter_*, or create it with features_only=True and the out_indices of these."
        )
    return [level["num_chs"] for level in levels]
