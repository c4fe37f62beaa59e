"""What a comparison is made of, apart from its schemes and seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mpvg.train.recipe import Recipe


@dataclass(frozen=True)
class Settings:
    """One configuration; every run in an output folder shares it.

    Args:
        data: Source of images, as `load_data` takes it.
        model: Name, ours or timm's.
        epochs: Passes over the training images.
        batch_size: Images a step.
        lrs: Peak learning rates. Of several, each scheme takes the best on the validation split of seed 0.
        recipe: How to train, apart from the rate.
        val_fraction: Part of train that becomes the validation split where the source has none.
        img_size: Side to resize images to, in pixels; None keeps their size.
        skip_bad_images: Leave out images that cannot be read.
        pretrained: Weights to start from: a file or folder, or True for those of the model's tag.
        preserve: Start from what these weights compute, with positions behind gates.
    """

    data: str
    model: str
    epochs: int
    batch_size: int
    lrs: tuple[float, ...]
    recipe: Recipe = field(default_factory=Recipe)
    val_fraction: float = 0.2
    img_size: int | None = None
    skip_bad_images: bool = False
    pretrained: str | bool = False
    preserve: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return all settings in one level of JSON-able values."""
        settings = asdict(self)
        del settings["recipe"]
        lr = list(settings.pop("lrs"))
        return {**self.recipe.as_dict(), **settings, "lr": lr}
