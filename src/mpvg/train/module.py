"""Image classification on Lightning: the recipe's pieces, and a card in every checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from mpvg.checkpoint import Card
from mpvg.create import check_name, starting_point
from mpvg.data.batch import Batch
from mpvg.errors import UserError
from mpvg.train.build import check_build, check_scheme, model_arguments, own_size
from mpvg.train.data import ImageDataModule
from mpvg.train.freezing import freeze, set_training_mode
from mpvg.train.optimizer import build_optimizer, build_schedule, set_rates
from mpvg.train.processes import MeanLoss
from mpvg.train.recipe import Recipe
from mpvg.train.steps import build_mixup, prepare, training_step
from mpvg.train.training import Training


class ImageClassification(Training):
    """A registered model under a position scheme, trained to name images.

    Args:
        name: A model of this library (`mpvg models` lists them), or one of timm's plain vision transformers and
            Swins, with the tag of its weights.
        scheme: Position scheme, by name or text ("mpvg:last_norm=5").
        arguments: Further arguments of `timm.create_model`, such as drop_path_rate.
        num_classes: Classes that the images must have; by default as many as they have.
        pretrained: Weights to start from: a file or folder, or true for those of the tag, which timm fetches.
        preserve: Start from what these weights compute, with positions behind gates; false starts position norms
            at one.
        compile: How torch.compile compiles the model: default, reduce-overhead (with CUDA graphs) or max-autotune; not
            at all by default.
        recipe: How to train.
    """

    watched = "val/accuracy"
    card: Card | None

    def __init__(
        self,
        name: str = "mpvg_vit_nano",
        scheme: str = "mpvg",
        arguments: dict[str, Any] | None = None,
        num_classes: int | None = None,
        pretrained: bool | str = False,
        preserve: bool = True,
        compile: str | None = None,
        recipe: Recipe = Recipe(),  # noqa: B008  # frozen, and jsonargparse shows its values
    ) -> None:
        super().__init__(
            name=check_name(name),
            scheme=check_scheme(scheme),
            arguments=arguments,
            pretrained=pretrained,
            preserve=preserve,
            compile=compile,
        )
        self.num_classes = num_classes
        of_data = sorted(set(self.arguments) & set(model_arguments((1, 1), 1, 1)))
        if of_data:
            raise UserError(f"model argument {of_data[0]!r} is decided by the images: leave it out.")
        self.recipe = recipe

    def build_for(self, data: ImageDataModule, *, seed: int, accumulated: int = 1) -> None:
        """Build the model for the images, with the initial values that the seed gives.

        Args:
            data: The images, read here.
            seed: Of the model's initial values, and of all that is drawn of the images.
            accumulated: Batches that a step of the optimiser is made of.

        Raises:
            UserError: The images cannot be read, or the model cannot be built for them.
        """
        images = data.load(
            own_size(self.name), seed=seed, augmentation=self.recipe.augmentation, accumulated=accumulated
        )
        self.images, self.first_step = len(data.train), 0
        self._check_classes(len(images.classes), images.name)
        self.recipe = self.recipe.for_batches_of(data.images_a_step * accumulated, model=self.name)
        of_images = model_arguments(data.image_size, data.channels, len(images.classes))
        start = starting_point(self.name, self.scheme, pretrained=self.pretrained, preserve=self.preserve)
        arguments = {**start.arguments, **self.arguments, **of_images}
        check_build(start.name, self.scheme, arguments, trains=self.recipe.trains)
        card = Card(
            model=start.name,
            scheme=self.scheme,
            arguments=arguments,
            preprocessing=data.preprocessing(start.origin.normalisation),
            classes=images.classes,
            data=data.arguments(),
            ema=self.recipe.ema_evaluate,
        )
        self.seed = seed
        torch.manual_seed(seed)
        model, self.told = start.build(self.scheme, **self.arguments, **of_images)
        self._take(card, model)
        freeze(self.model, self.recipe.trains)
        if self.recipe.ema_decay is not None:
            self.ema = ModelEmaV3(self.model, decay=self.recipe.ema_decay)
            self.ema.requires_grad_(False)  # or several processes wait for its gradients
        self.images_a_step = data.images_a_step
        self.mixup = build_mixup(self.recipe, len(images.classes), data.images_a_step)

    def take(self, card: Card, model: torch.nn.Module, data: ImageDataModule) -> None:
        """Take a checkpoint's model, to be tested on images.

        Args:
            card: Of the checkpoint.
            model: Of the checkpoint.
            data: The images, read here.

        Raises:
            UserError: The images cannot be read, or are not such as the model was trained on.
        """
        seen = card.preprocessing
        images = data.load(seen.size)
        if (data.image_size, data.channels) != (seen.size, seen.channels):
            raise UserError(
                f"{images.name} has images of {_shape(data.image_size, data.channels)}, the checkpoint's model "
                f"takes {_shape(seen.size, seen.channels)}: resize or convert them."
            )
        if images.classes != card.classes:
            raise UserError(
                f"{images.name} has the classes {_some(images.classes)}, the checkpoint's model knows "
                f"{_some(card.classes)}: test it on images of the same classes."
            )
        self._take(card, model)

    def _check_classes(self, found: int, source: str) -> None:
        if self.num_classes is not None and found != self.num_classes:
            fewer = "fewer" if found < self.num_classes else "more"
            raise UserError(
                f"{source} has {found} classes, {fewer} than the head's {self.num_classes}: check the path, or set "
                f"--model.num_classes {found} for these images."
            )

    def _take(self, card: Card, model: torch.nn.Module) -> None:
        self.card = card
        self.model = model
        self.accuracy = MulticlassAccuracy(len(card.classes), average="micro")
        self.loss = MeanLoss()

    @property
    def peak_rate(self) -> float:
        assert self.recipe.lr is not None
        return self.recipe.lr

    def create_optimizer(self, *, fused: bool) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.recipe, fused=fused)

    def create_schedule(self, optimizer: torch.optim.Optimizer, *, steps: int, epochs: int) -> Any:
        return build_schedule(
            optimizer, self.recipe.schedule, steps=steps, epochs=epochs, steps_an_epoch=self.steps_an_epoch
        )

    def set_rates(self, schedule: Any) -> None:
        set_rates(schedule, self.recipe.schedule, step=self.global_step, steps_an_epoch=self.steps_an_epoch)

    def check_start(self) -> None:
        if self.mixup is not None and self.images_a_step // self.trainer.world_size % 2:
            raise UserError(
                f"batch_size {self.images_a_step} over {self.trainer.world_size} processes leaves each an odd number, "
                "and mixup pairs images: name a multiple of twice the number of processes."
            )

    def set_mode(self) -> None:
        set_training_mode(self.model, self.recipe.trains)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = prepare(
            batch, self.recipe, self._normalise, self.mixup, seed=self.seed, epoch=self.current_epoch
        )
        loss = training_step(self.model, (images,), labels, self.recipe)
        self.watch_step(loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, part: str, batch: tuple[Tensor, ...]) -> None:
        images, labels = batch[:2]
        model = self.ema.module if self.ema is not None and self.recipe.ema_evaluate else self.model
        logits = model(self._normalise(images))
        self.accuracy.update(logits, labels)
        self.loss.update(cross_entropy(logits, labels), len(labels))
        self.log(f"{part}/loss", self.loss, batch_size=len(labels))
        self.log(f"{part}/accuracy", self.accuracy, batch_size=len(labels))

    def _normalise(self, pixels: Tensor) -> Tensor:
        assert self.card is not None
        return self.card.preprocessing(pixels).to(self.dtype)


def _shape(size: tuple[int, int], channels: int) -> str:
    return f"{size[0]} x {size[1]} pixels in {'grey' if channels == 1 else 'colour'}"


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:5]) + (f" ... ({len(classes)} in all)" if len(classes) > 5 else "")
