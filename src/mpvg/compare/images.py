"""Images in a comparison: how they are loaded, checked against the models, and fed to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mpvg.checkpoint import Card
from mpvg.compare.feed import Inputs
from mpvg.compare.settings import Settings
from mpvg.create import Start, check_name, starting_point
from mpvg.data.batch import Batch
from mpvg.data.batches import epoch_batches
from mpvg.data.preprocessing import Preprocessing, eval_batch_size, to_tensors
from mpvg.data.sources import ImageData, Split, absolute_source, load_data
from mpvg.errors import UserError
from mpvg.train.build import check_build, model_arguments, own_size
from mpvg.train.steps import build_mixup, prepare

Placed = tuple[Tensor, Tensor]  # pixels (N, C, H, W) in uint8, labels (N,)


def load_images(settings: Settings, schemes: Sequence[str]) -> tuple[dict[str, str], ImageData]:
    """Return each scheme with what the model makes of it, and the images.

    Args:
        settings: The configuration.
        schemes: Canonical texts.

    Raises:
        UserError: The model or the images cannot be used.
    """
    check_name(settings.model)
    if settings.model.startswith("mpvg_sequence"):
        raise UserError(f"--model {settings.model} does not look at images: name --task text or --task series with it.")
    assert isinstance(settings.data, str)
    if settings.img_size:  # before images are resized to no purpose
        check_build(settings.model, schemes[0], model_arguments((settings.img_size, settings.img_size), 3, 2))
    data = load_data(
        settings.data,
        img_size=settings.img_size,
        mixed_size=own_size(settings.model),
        skip_bad_images=settings.skip_bad_images,
    )
    of_images = model_arguments(data.image_size, data.channels, len(data.classes))
    built = {}
    for name in schemes:
        start = starting_point(settings.model, name, pretrained=settings.pretrained, preserve=settings.preserve)
        arguments = {**start.arguments, **of_images}
        if start.weights is not None:
            start.build(name, **of_images)  # says now whether the weights fit every scheme
        built[name] = check_build(start.name, name, arguments, trains=settings.recipe.trains)
    return built, data


class ImageFeed:
    """Augments, normalises and batches the images of one run; methods are those of `Feed`.

    Args:
        settings: The configuration.
        data: The images.
        train: Those to train on, whose mean and deviation normalise all.
        start: What the model starts from; its weights may know another mean and deviation.
        device: Where to compute.
    """

    def __init__(self, settings: Settings, data: ImageData, train: Split, *, start: Start, device: str) -> None:
        self.recipe, self.device = settings.recipe, device
        self.preprocessing = Preprocessing.of(train).with_normalisation(start.origin.normalisation)
        self.model_arguments = model_arguments(data.image_size, data.channels, len(data.classes))
        self.mixup = build_mixup(settings.recipe, len(data.classes), min(settings.batch_size, len(train)))

    def place(self, split: Split) -> Placed:
        return to_tensors(split, self.device)

    def batches(self, placed: Placed, *, batch_size: int, seed: int, epoch: int) -> Iterator[Batch]:
        return epoch_batches(
            *placed,
            batch_size=batch_size,
            augmentation=self.recipe.augmentation,
            mean=self.preprocessing.mean,
            seed=seed,
            epoch=epoch,
        )

    def prepare(self, batch: Batch, *, seed: int, epoch: int) -> tuple[Inputs, Tensor]:
        images, targets = prepare(batch, self.recipe, self.preprocessing, self.mixup, seed=seed, epoch=epoch)
        return (images,), targets

    def readings(self, placed: Placed) -> Iterator[tuple[Inputs, Tensor]]:
        at_once = eval_batch_size(self.preprocessing.size)
        for pixels, labels in zip(*(part.split(at_once) for part in placed), strict=True):
            yield (self.preprocessing(pixels),), labels

    def sample(self, placed: Placed) -> Inputs:
        pixels, _ = placed
        shown = torch.linspace(0, len(pixels) - 1, min(len(pixels), eval_batch_size(self.preprocessing.size))).long()
        return (self.preprocessing(pixels[shown]),)  # spread: files come by class

    def shuffled(self, placed: Placed) -> None:
        return None

    def card(self, settings: Settings, *, scheme: str, seed: int, start: Start, classes: tuple[str, ...]) -> Card:
        assert isinstance(settings.data, str)
        return Card(
            model=start.name,
            scheme=scheme,
            arguments={**start.arguments, **self.model_arguments},
            preprocessing=self.preprocessing,
            classes=classes,
            data={
                "source": absolute_source(settings.data),
                "img_size": settings.img_size,
                "val_fraction": settings.val_fraction,
                "skip_bad_images": settings.skip_bad_images,
                "seed": seed,
            },
        )


def image_facts(data: ImageData) -> Mapping[str, Any]:
    """Return what a summary tells of the images' shape."""
    return {"image_size": list(data.image_size), "channels": data.channels}
