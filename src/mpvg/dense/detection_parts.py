"""What torchvision's Mask R-CNN is given in place of its own parts, to be that of mmdet's configuration."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_area, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mpvg.dense.maps import STRIDES, widths_of

_SCALE, _RATIOS = 8, (0.5, 1.0, 2.0)  # sides of anchors in strides, and height by width
_FINEST = 56  # pixels; a box of up to twice this side is read from the finest map


class Pyramid(nn.Module):
    """A backbone and its feature pyramid: five maps of equal width, the last one a subsampled fourth.

    Args:
        body: Gives four maps, with timm's `feature_info`.
        width: Channels of the pyramid.
    """

    def __init__(self, body: nn.Module, *, width: int) -> None:
        super().__init__()
        self.body = body
        self.out_channels = width
        self.fpn = FeaturePyramidNetwork(widths_of(body), width, extra_blocks=LastLevelMaxPool())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps by level, from the finest."""
        found: dict[str, Tensor] = self.fpn(OrderedDict((str(i), level) for i, level in enumerate(self.body(x))))
        return found


class Anchors(AnchorGenerator):
    """Anchors of one size a level, not rounded, at the strides of the levels.

    torchvision's own divide the image's side by the map's, which is 61 for a map of 13 rows of an image of 800.
    """

    def __init__(self) -> None:
        self.strides = (*STRIDES, 2 * STRIDES[-1])
        super().__init__(tuple((_SCALE * stride,) for stride in self.strides), (_RATIOS,) * len(self.strides))

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the boxes (A, 4) around the origin, in pixels."""
        heights = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        sides = torch.tensor(scales, dtype=dtype, device=device)
        halves = torch.stack([sides / heights, sides * heights], dim=1) / 2
        return torch.cat([-halves, halves], dim=1)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors (A, 4) of each image, in float32 whatever the maps are in."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([level.shape[-2:] for level in feature_maps], strides))
        return [anchors] * len(image_list.image_sizes)


class ProposalHead(RPNHead):
    """torchvision's, whose coordinates stay in float32 where the rest is computed in half precision."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class RoIPool(MultiScaleRoIAlign):
    """RoIAlign of the map that suits each box's size, with half a pixel's shift and as many samples as the box needs.

    Args:
        side: Of what is cut out of a map.
    """

    def __init__(self, side: int) -> None:
        super().__init__([str(level) for level in range(len(STRIDES))], side, sampling_ratio=0)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Return (N, C, side, side) of the boxes of all images, in float32."""
        maps = [x[name].float() for name in self.featmap_names]
        rois = torch.cat([nn.functional.pad(own, (1, 0), value=image) for image, own in enumerate(boxes)])
        sides = box_area(rois[:, 1:]).clamp(min=0).sqrt()
        levels = (sides / _FINEST + 1e-6).log2().floor().clamp(0, len(maps) - 1)
        found = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for level, (values, stride) in enumerate(zip(maps, STRIDES, strict=True)):
            chosen = torch.where(levels == level)[0]
            found[chosen] = roi_align(
                values, rois[chosen], self.output_size, 1 / stride, self.sampling_ratio, aligned=True
            )
        return found


class BoxPredictor(nn.Module):
    """Logits of the classes and of the background, which is class 0, and a box for each class but that.

    Args:
        width: Of what it reads.
        num_classes: Without the background.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, num_classes + 1)
        self.bbox_pred = nn.Linear(width, 4 * num_classes)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, K + 1) and changes of boxes (N, 4 K + 4), of which nobody reads the first four."""
        return self.cls_score(x).float(), nn.functional.pad(self.bbox_pred(x).float(), (4, 0))


class MaskPredictor(nn.Sequential):
    """A mask for each class.

    Args:
        width: Of what it reads.
        num_classes: Without the background.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        upsample, classify = nn.ConvTranspose2d(width, width, 2, stride=2), nn.Conv2d(width, num_classes, 1)
        for layer in (upsample, classify):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        super().__init__(upsample, nn.ReLU(), classify)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, K + 1, h, w), of which nobody reads the background's."""
        return nn.functional.pad(super().forward(x).float(), (0, 0, 0, 0, 1, 0))


class Normalisation(GeneralizedRCNNTransform):
    """Normalises, and pads to multiples of 32; images are resized where they are read.

    Args:
        mean: Of each channel, of pixels from 0 to 1.
        std: Likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(0, 0, list(mean), list(std), size_divisible=STRIDES[-1])

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return an image and its target as they are."""
        return image, target
