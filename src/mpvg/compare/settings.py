"""What a comparison is made of, apart from its schemes and seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """One configuration; every run in an output folder shares it.

    Args:
        data: Source of images, as `load_data` takes it.
        model: Registered model.
        epochs: Passes over the training images.
        batch_size: Images a step.
        lr: Peak learning rate of AdamW.
        weight_decay: For matrices only; norms, biases and position tables have none.
        warmup: Part of the steps with a linear warm-up; cosine to zero follows.
        label_smoothing: Of the cross-entropy.
        shift: Largest random shift of a training image, as a part of its side, in whole pixels (none below 10).
        val_fraction: Part of train that becomes the validation split where the source has none.
        img_size: Side to resize images to, in pixels; None keeps their size.
    """

    data: str
    model: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    shift: float = 0.1
    val_fraction: float = 0.2
    img_size: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
