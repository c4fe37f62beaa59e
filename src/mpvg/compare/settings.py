"""What a comparison is made of, apart from its schemes and seeds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mpvg.train.recipe import Recipe


@dataclass(frozen=True)
class SequenceOptions:
    """What is asked of text or series beside what images have too.

    Args:
        task: "text" or "series".
        max_length: Tokens of a sentence, or steps of a series, beyond which it is cut; None cuts nothing.
        patch_size: Steps of a series that make one token; None for what gives 64 tokens at most.
        impute: Fill in missing values of series.
        shuffle_tokens: Train and test on tokens in random order, to see what a task needs no order for.
    """

    task: str
    max_length: int | None = None
    patch_size: int | None = None
    impute: bool = False
    shuffle_tokens: bool = False


@dataclass(frozen=True)
class Settings:
    """One configuration; every run in an output folder shares it.

    Args:
        data: Source, as `load_data` takes it; of series, the files.
        model: Name, ours or timm's.
        epochs: Passes over the training split.
        batch_size: Samples a step.
        lrs: Peak learning rates. Of several, each scheme takes the best on the validation split of seed 0.
        recipe: How to train, apart from the rate.
        val_fraction: Part of train that becomes the validation split where the source has none.
        img_size: Side to resize images to, in pixels; None keeps their size.
        skip_bad_images: Leave out images that cannot be read.
        pretrained: Weights to start from: a file or folder, or True for those of the model's tag.
        preserve: Start from what these weights compute, with positions behind gates.
        sequences: What is asked of text or series; None for images.
    """

    data: str | tuple[str, ...]
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
    sequences: SequenceOptions | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The parts of `data`."""
        return (self.data,) if isinstance(self.data, str) else self.data

    def as_dict(self) -> dict[str, Any]:
        """Return all settings in one level of JSON-able values."""
        settings = asdict(self)
        del settings["recipe"]
        lr, of_sequences = list(settings.pop("lrs")), settings.pop("sequences")
        if of_sequences is None:
            return {**self.recipe.as_dict(), **settings, "lr": lr}
        of_images = {"img_size", "skip_bad_images", "pretrained", "preserve", *asdict(self.recipe.augmentation)}
        rest = {name: value for name, value in {**self.recipe.as_dict(), **settings}.items() if name not in of_images}
        return {**rest, **of_sequences, "data": " ".join(self.sources), "lr": lr}
