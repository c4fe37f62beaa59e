"""Training on Lightning: the recipe's pieces, and a card in every checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from mpvg.checkpoint import Card
from mpvg.create import check_name, starting_point
from mpvg.data.preprocessing import Preprocessing
from mpvg.errors import UserError
from mpvg.train.build import check_build, check_scheme, model_arguments, own_size
from mpvg.train.data import Batch, ImageDataModule
from mpvg.train.freezing import freeze, set_training_mode
from mpvg.train.recipe import Recipe, build_optimizer, build_schedule, check_loss, default_lr, training_step
from mpvg.weight_files import CARD


class ImageClassification(lightning.LightningModule):
    """A registered model under a position scheme, trained to name images.

    Args:
        name: A model of this library (`mpvg models` lists them), or one of timm's plain vision transformers and
            Swins, with the tag of its weights.
        scheme: Position scheme, by name or text ("mpvg:last_norm=5").
        arguments: Further arguments of `timm.create_model`, such as drop_path_rate.
        pretrained: Weights to start from: a file or folder, or true for those of the tag, which timm fetches.
        preserve: Start from what these weights compute, with positions behind gates; false starts position norms
            at one.
        recipe: How to train.
    """

    def __init__(
        self,
        name: str = "mpvg_vit_nano",
        scheme: str = "mpvg",
        arguments: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        preserve: bool = True,
        recipe: Recipe = Recipe(),  # noqa: B008  # frozen, and jsonargparse shows its values
    ) -> None:
        super().__init__()
        self.name = check_name(name)
        self.scheme = check_scheme(scheme)
        self.arguments = arguments or {}
        self.pretrained, self.preserve = pretrained, preserve
        self.told: list[str] = []  # what of the pretrained weights was not taken over
        of_data = sorted(set(self.arguments) & set(model_arguments((1, 1), 1, 1)))
        if of_data:
            raise UserError(f"model argument {of_data[0]!r} is decided by the images: leave it out.")
        self.lr = default_lr(name) if recipe.lr is None else recipe.lr
        self.recipe = replace(recipe, lr=self.lr)
        self.card: Card | None = None

    def build_for(self, data: ImageDataModule, *, seed: int) -> None:
        """Build the model for the images, with the initial values that the seed gives.

        Args:
            data: The images, read here.
            seed: Of the model's initial values, and of all that is drawn of the images.

        Raises:
            UserError: The images cannot be read, or the model cannot be built for them.
        """
        images = data.load(own_size(self.name), seed=seed, shift=self.recipe.shift)
        of_images = model_arguments(images.image_size, images.channels, len(images.classes))
        start = starting_point(self.name, self.scheme, pretrained=self.pretrained, preserve=self.preserve)
        arguments = {**start.arguments, **self.arguments, **of_images}
        check_build(start.name, self.scheme, arguments, trains=self.recipe.trains)
        card = Card(
            model=start.name,
            scheme=self.scheme,
            arguments=arguments,
            preprocessing=Preprocessing.of(data.train).with_normalisation(start.origin.normalisation),
            classes=images.classes,
            data=data.arguments(),
        )
        self.seed = seed
        torch.manual_seed(seed)
        model, self.told = start.build(self.scheme, **self.arguments, **of_images)
        self._take(card, model)
        freeze(self.model, self.recipe.trains)

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
        if (images.image_size, images.channels) != (seen.size, seen.channels):
            raise UserError(
                f"{images.name} has images of {_shape(images.image_size, images.channels)}, the checkpoint's model "
                f"takes {_shape(seen.size, seen.channels)}: resize or convert them."
            )
        if images.classes != card.classes:
            raise UserError(
                f"{images.name} has the classes {_some(images.classes)}, the checkpoint's model knows "
                f"{_some(card.classes)}: test it on images of the same classes."
            )
        self._take(card, model)

    def _take(self, card: Card, model: torch.nn.Module) -> None:
        self.card = card
        self.model = model
        self.val_accuracy = MulticlassAccuracy(len(card.classes), average="micro")
        self.test_accuracy = MulticlassAccuracy(len(card.classes), average="micro")

    def configure_optimizers(self) -> Any:
        clipped = bool(self.trainer.gradient_clip_val)  # Lightning clips no fused optimiser in mixed precision
        optimizer = build_optimizer(self.model, self.recipe, fused=not clipped)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule(optimizer, self.recipe, steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(self.global_step + 1)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # drop path and dropout depend on the step alone: a run that was interrupted goes on as it would have
        stream = np.random.SeedSequence([self.seed, self.global_step, self.global_rank])
        torch.manual_seed(int(stream.generate_state(1)[0]))
        set_training_mode(self.model, self.recipe.trains)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = training_step(self.model, self._normalise(images), labels, self.recipe)
        what = f"{self.name} under {self.scheme}"
        check_loss(loss.item(), what=what, epoch=self.current_epoch + 1, step=self.global_step + 1, lr=self.lr)
        self.log("train/loss", loss)
        optimizer: Any = self.optimizers()
        self.log("lr", max(group["lr"] for group in optimizer.param_groups))  # the classifier's, with layer decay
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", self.val_accuracy, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", self.test_accuracy, batch)

    def _evaluate(self, part: str, accuracy: MulticlassAccuracy, batch: Batch) -> None:
        images, labels = batch
        logits = self.model(self._normalise(images))
        accuracy.update(logits, labels)
        self.log(f"{part}/loss", cross_entropy(logits, labels), batch_size=len(labels), sync_dist=True)
        self.log(f"{part}/accuracy", accuracy, batch_size=len(labels))

    def _normalise(self, pixels: Tensor) -> Tensor:
        assert self.card is not None
        return self.card.preprocessing(pixels).to(self.dtype)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.card is not None
        checkpoint[CARD] = self.card.as_dict()


def _shape(size: tuple[int, int], channels: int) -> str:
    return f"{size[0]} x {size[1]} pixels in {'grey' if channels == 1 else 'colour'}"


def _some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:5]) + (f" ... ({len(classes)} in all)" if len(classes) > 5 else "")
