"""UperNet on a backbone of four maps: transformers' decoder, with mmseg's auxiliary head and initial values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from mpvg.data.dense.labels import IGNORED
from mpvg.dense.maps import widths_of
from mpvg.dense.sliding import slide
from mpvg.errors import UserError

_POOLS = (1, 2, 3, 6)


class UperNet(nn.Module):
    """Names each pixel.

    Args:
        backbone: Gives maps of strides 4, 8, 16 and 32.
        decoder: From these to logits at the first one's size.
        auxiliary: From the third one to logits at its size, in training only.
        num_classes: Classes of pixels.
        auxiliary_weight: Of its loss.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decoder: nn.Module,
        auxiliary: nn.Module,
        *,
        num_classes: int,
        auxiliary_weight: float,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.decode_head = decoder
        self.auxiliary_head = auxiliary
        self.auxiliary_weight = auxiliary_weight

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of normalised images (B, 3, H, W)."""
        return _resized(self.decode_head(self.backbone(x)), x)

    def segment(self, x: Tensor, size: tuple[int, int], *, window: tuple[int, int] | None) -> Tensor:
        """Return the class of each pixel (B, H, W).

        Args:
            x: Normalised images (B, 3, h, w).
            size: H and W at which to tell it.
            window: Side of windows that slide over the images, and pixels between two; None sees them whole.
        """
        if window is None:
            logits = self(x)
        else:
            side, stride = window
            logits = slide(self, x, crop=side, stride=stride, num_classes=self.num_classes)
        return interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(dim=1)

    def losses(self, x: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Return what a training step descends, by part.

        Args:
            x: Normalised images (B, 3, H, W).
            masks: Class of each pixel (B, H, W), 255 for none. As in mmseg such pixels count in the mean as zero.

        Returns:
            "loss_decode" and "loss_aux", the latter weighted; their sum is the loss.
        """
        maps = self.backbone(x)
        decoded, auxiliary = (_resized(logits, x) for logits in (self.decode_head(maps), self.auxiliary_head(maps[2])))
        return {
            "loss_decode": _mean_cross_entropy(decoded, masks),
            "loss_aux": self.auxiliary_weight * _mean_cross_entropy(auxiliary, masks),
        }


def build_upernet(
    backbone: nn.Module,
    num_classes: int,
    *,
    channels: int = 512,
    auxiliary_channels: int = 256,
    auxiliary_weight: float = 0.4,
    dropout: float = 0.1,
) -> UperNet:
    """Build UperNet with an auxiliary head on the third map.

    Args:
        backbone: Gives maps of strides 4, 8, 16 and 32, with timm's `feature_info`.
        num_classes: Classes of pixels.
        channels: Of the decoder.
        auxiliary_channels: Of the auxiliary head.
        auxiliary_weight: Of its loss.
        dropout: Part of the channels that either head drops before it names pixels.

    Returns:
        The model, in training mode.

    Raises:
        UserError: transformers is missing, the backbone's maps have other strides, or a number cannot be.

    Source:
        Xiao et al., Unified Perceptual Parsing for Scene Understanding, 2018; mmseg's upernet_r50, on which
        ViT-Adapter's configuration is based.
    """
    widths = widths_of(backbone)
    counts = {"num_classes": num_classes, "channels": channels, "auxiliary_channels": auxiliary_channels}
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} {count}: name a number, 1 or more.")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout {dropout}: name a part from 0 to below 1.")
    if not auxiliary_weight >= 0:
        raise UserError(f"auxiliary_weight {auxiliary_weight}: name a number from 0.")
    decoder = _decoder(widths, num_classes, channels=channels)
    decoder.classifier = nn.Sequential(nn.Dropout2d(dropout), decoder.classifier)
    auxiliary = nn.Sequential(
        nn.Conv2d(widths[2], auxiliary_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(auxiliary_channels),
        nn.ReLU(),
        nn.Dropout2d(dropout),
        nn.Conv2d(auxiliary_channels, num_classes, 1),
    )
    for head in (decoder, auxiliary):
        _initialise(head)
    return UperNet(backbone, decoder, auxiliary, num_classes=num_classes, auxiliary_weight=auxiliary_weight)


def _decoder(widths: Sequence[int], num_classes: int, *, channels: int) -> Any:
    try:
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetHead
    except ImportError as error:
        raise UserError(f"UperNet needs mpvg[dense]: pip install 'mpvg[dense]' ({error}).") from error
    config = UperNetConfig(hidden_size=channels, pool_scales=list(_POOLS), num_labels=num_classes)
    return UperNetHead(config, in_channels=list(widths))


def _initialise(head: nn.Module) -> None:
    """Give a head the initial values of mmseg's; classifiers are the convolutions with a bias."""
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            if layer.bias is None:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)


def _resized(logits: Tensor, images: Tensor) -> Tensor:
    return interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def _mean_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    total: Tensor = cross_entropy(logits.float(), masks, ignore_index=IGNORED, reduction="sum")
    return total / torch.numel(masks)
