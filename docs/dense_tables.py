"""Write the table of heads in docs/fidelity.md from what is counted: python docs/dense_tables.py"""

from __future__ import annotations

from functools import cache

from torch import nn

from mpvg.dense.detection import build_mask_rcnn
from mpvg.dense.maps import STRIDES
from mpvg.dense.segmentation import build_upernet
from tables import DOCS, Tables, table, write

DOCUMENT = DOCS / "fidelity.md"
OFFICIAL = {
    "Mask R-CNN: feature pyramid": 2_557_952,
    "Mask R-CNN: proposals (RPN)": 593_935,
    "Mask R-CNN: boxes and classes": 14_306_705,
    "Mask R-CNN: masks": 2_643_280,
    "UperNet: decoder": 27_614_358,
    "UperNet: auxiliary head": 481_430,
}
_OF_COCO, _OF_ADE20K = 80, 150  # classes


@cache
def counted() -> dict[str, int]:
    """Return the parameters of each part, on four maps of 192 channels as ViT-Adapter-Ti has them."""
    backbone = _FourMaps()
    detector = build_mask_rcnn(backbone, _OF_COCO)
    segmenter = build_upernet(backbone, _OF_ADE20K)
    heads = detector.roi_heads
    parts: dict[str, tuple[nn.Module, ...]] = {
        "Mask R-CNN: feature pyramid": (detector.backbone.fpn,),
        "Mask R-CNN: proposals (RPN)": (detector.rpn,),
        "Mask R-CNN: boxes and classes": (heads.box_head, heads.box_predictor),
        "Mask R-CNN: masks": (heads.mask_head, heads.mask_predictor),
        "UperNet: decoder": (segmenter.decode_head,),
        "UperNet: auxiliary head": (segmenter.auxiliary_head,),
    }
    return {
        name: sum(parameter.numel() for module in modules for parameter in module.parameters())
        for name, modules in parts.items()
    }


class _FourMaps(nn.Module):
    """A backbone of which heads ask nothing but the widths of its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = [{"num_chs": 192, "reduction": stride} for stride in STRIDES]


def head_parameters() -> str:
    """Return official and own parameters of each part."""
    ours = counted()
    body = [[part, f"{official:,}", f"{ours[part]:,}"] for part, official in OFFICIAL.items()]
    for name in ("Mask R-CNN", "UperNet"):
        parts = [part for part in OFFICIAL if part.startswith(name)]
        totals = (sum(of[part] for part in parts) for of in (OFFICIAL, ours))
        body.append([f"**{name}, all heads**", *(f"{total:,}" for total in totals)])
    return table(["part", "official", "ours"], body)


TABLES: Tables = {"heads": head_parameters}

if __name__ == "__main__":
    write(DOCUMENT, TABLES)
