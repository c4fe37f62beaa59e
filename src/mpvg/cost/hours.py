"""From images a second to hours of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

IMAGENET: Final = 1_281_167  # training images of ImageNet-1k
EFFICIENCY: Final = 0.9  # assumed: what is left of a GPU's throughput when several train together


@dataclass(frozen=True)
class Recipe:
    """One of the paper's ImageNet recipes.

    Args:
        label: The architecture as the paper names it.
        model: Registered name.
        epochs: Passes over the training images.
    """

    label: str
    model: str
    epochs: int


# Source: the official repositories' defaults; T2T-ViT's 300 epochs of cosine are followed by 10 at the lowest rate.
RECIPES: Final = (
    Recipe("DeiT-Ti", "mpvg_deit_tiny_patch16_224", 300),
    Recipe("DeiT-S", "mpvg_deit_small_patch16_224", 300),
    Recipe("DeiT-B", "mpvg_deit_base_patch16_224", 300),
    Recipe("CeiT-Ti", "mpvg_ceit_tiny_patch16_224", 300),
    Recipe("Swin-Ti", "mpvg_swin_tiny_patch4_window7_224", 300),
    Recipe("T2T-ViT-7", "mpvg_t2t_vit_7", 310),
)


def hours(
    images_per_second: float, *, gpus: int, epochs: int, images: int = IMAGENET, efficiency: float = EFFICIENCY
) -> float:
    """Return the hours that a recipe takes.

    Args:
        images_per_second: Training throughput of one device by itself.
        gpus: Number of such devices.
        epochs: Passes over the images.
        images: Images an epoch.
        efficiency: What is left of each device's throughput when several train together; of a single one all.

    Returns:
        Hours of training, without validation and without waiting for data.

    Raises:
        ValueError: A number that is not positive, or an efficiency above 1.
    """
    for name, value in (("images_per_second", images_per_second), ("gpus", gpus), ("epochs", epochs)):
        if not value > 0:
            raise ValueError(f"{name}={value}: name a number above 0.")
    if not 0 < efficiency <= 1:
        raise ValueError(f"efficiency={efficiency}: name a part above 0, up to 1.")
    together = images_per_second * gpus * (efficiency if gpus > 1 else 1)
    return images * epochs / together / 3600


def training_flops(forward: float, *, epochs: int, images: int = IMAGENET) -> float:
    """Return the FLOPs of a recipe: a backward pass has two matrix products for each one of the forward pass.

    Args:
        forward: FLOPs of one image's forward pass.
        epochs: Passes over the images.
        images: Images an epoch.
    """
    return 3 * forward * images * epochs
