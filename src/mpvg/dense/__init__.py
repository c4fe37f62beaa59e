"""Dense tasks: what lets a plain vision transformer find objects and name pixels.

from mpvg.dense import build_mask_rcnn, build_upernet
detector = build_mask_rcnn(timm.create_model("mpvg_vit_adapter_tiny_patch16", scheme="mpvg"), num_classes=80)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpvg.dense.deformable import MultiScaleDeformableAttention as MultiScaleDeformableAttention
    from mpvg.dense.deformable import multi_scale_deformable_attention as multi_scale_deformable_attention
    from mpvg.dense.detection import build_mask_rcnn as build_mask_rcnn
    from mpvg.dense.segmentation import build_upernet as build_upernet
    from mpvg.models.mpvg_vit_adapter import ViTAdapter as ViTAdapter
    from mpvg.models.trunk_weights import load_trunk as load_trunk

# imported when asked for: `import mpvg`, which needs the backbone alone, is no slower for the heads
_FROM = {
    "MultiScaleDeformableAttention": "mpvg.dense.deformable",
    "multi_scale_deformable_attention": "mpvg.dense.deformable",
    "build_mask_rcnn": "mpvg.dense.detection",
    "build_upernet": "mpvg.dense.segmentation",
    "ViTAdapter": "mpvg.models.mpvg_vit_adapter",
    "load_trunk": "mpvg.models.trunk_weights",
}
__all__ = list(_FROM)


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FROM[name]), name)
