"""What is drawn of training images: the settings, which `mpvg.data.augment` and `mpvg.data.large` follow."""

from __future__ import annotations

from dataclasses import dataclass

from timm.data.auto_augment import rand_augment_transform

from mpvg.errors import UserError, nearest

INTERPOLATIONS = ("bilinear", "bicubic", "random")


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a training; the default draws a shift and nothing else.

    Args:
        shift: Largest random shift over the repeated border, as a part of the image's side, in whole pixels (none below
            10); for images in memory.
        crop_scale: Smallest and largest part of the area that a random crop takes, which is resized to the image's
            size; None for none.
        crop_ratio: Smallest and largest width by height of that crop.
        interpolation: How crops, rotations, shears and translations interpolate: bilinear, bicubic, or one of both at
            random.
        padding: Pixels of a black border from which a crop of the image's size is taken.
        flip: Probability of a horizontal flip.
        rand_augment: Random operations as timm writes them, such as rand-m9-mstd0.5-inc1; None for none.
        erasing: Probability that a rectangle of the normalised image is replaced by noise, N(0, 1).
        erase_after_mixup: Erase after the mixing of the batch, as timm's prefetching loader does, not before.
        repeats: How often in a row an epoch takes each image (repeated augmentation); its length stays.
        mixup: Parameter of the beta distribution that two images are mixed by; 0 for none.
        cutmix: Likewise, of the part that one image takes from another; 0 for none.
        mix_prob: Probability that a batch is mixed at all.
        switch_prob: Probability of cutmix where both are on.
    """

    shift: float = 0.1
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    padding: int = 0
    flip: float = 0.0
    rand_augment: str | None = None
    erasing: float = 0.0
    erase_after_mixup: bool = False
    repeats: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.shift < 1:
            raise UserError(f"shift {self.shift}: name a part from 0 to below 1.")
        for name in ("flip", "erasing", "mix_prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: name a probability from 0 to 1.")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} {getattr(self, name)}: name a number from 0.")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError(f"crop_scale {self.crop_scale}: name two parts of the area, the smaller first.")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1] < float("inf"):
            raise UserError(f"crop_ratio {self.crop_ratio}: name two ratios above 0, the smaller first.")
        if self.interpolation not in INTERPOLATIONS:
            guess = nearest(self.interpolation, INTERPOLATIONS)
            raise UserError(f"interpolation {self.interpolation!r} is unknown{guess}: {', '.join(INTERPOLATIONS)}.")
        if self.padding < 0 or self.repeats < 1:
            name = "padding" if self.padding < 0 else "repeats"
            raise UserError(f"{name} {getattr(self, name)} is too low: leave it out.")
        if self.rand_augment is not None:
            try:
                rand_augment_transform(self.rand_augment, {})
            except (AssertionError, KeyError, ValueError) as error:
                raise UserError(
                    f"rand_augment {self.rand_augment!r} is none of timm's: write it as rand-m9-mstd0.5-inc1."
                ) from error

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed, so that labels are soft."""
        return self.mix_prob > 0 and max(self.mixup, self.cutmix) > 0
