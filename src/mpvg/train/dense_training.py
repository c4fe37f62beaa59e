"""What detection and segmentation share on Lightning: building the model for a set, its weights, rates and scores."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mpvg.dense.card import DenseCard, check_backbone, check_head
from mpvg.errors import UserError
from mpvg.models.trunk_weights import load_trunk, read_trunk
from mpvg.train.build import check_scheme
from mpvg.train.dense_data import DetectionData, SegmentationData
from mpvg.train.dense_optimizer import build_dense_optimizer, build_dense_schedule
from mpvg.train.dense_recipe import DenseRecipe
from mpvg.train.training import Training


class DenseTraining(Training):
    """What detection and segmentation share: a backbone of four maps, whose trunk may start from classification."""

    task: ClassVar[str]
    of_task: ClassVar[dict[str, Any]]  # arguments of the backbone that the task asks for
    card: DenseCard | None

    def __init__(
        self,
        *,
        name: str,
        scheme: str,
        arguments: dict[str, Any] | None,
        head: dict[str, Any] | None,
        pretrained: str | None,
        compile: str | None,
        recipe: DenseRecipe,
    ) -> None:
        super().__init__(
            name=check_backbone(name),
            scheme=check_scheme(scheme),
            arguments={**self.of_task, **(arguments or {})},
            pretrained=pretrained or False,
            preserve=False,  # positions have gates where those of the weights have
            compile=compile,
        )
        self.head = check_head(self.task, head or {})
        self.recipe = recipe

    @abstractmethod
    def evaluation(self, data: Any) -> dict[str, Any]:
        """Return how images are seen that are evaluated, for the card."""

    @abstractmethod
    def create_measure(self, card: DenseCard) -> Metric:
        """Create what predictions are measured by."""

    def build_for(self, data: DetectionData | SegmentationData, *, seed: int, accumulated: int = 1) -> None:
        """Build the model for the images, with the initial values that the seed gives.

        Args:
            data: The images, looked up here.
            seed: Of the model's initial values, and of all that is drawn of the images.
            accumulated: Batches that a step of the optimiser is made of.

        Raises:
            UserError: The images cannot be read, or the model cannot be built for them.
        """
        images = data.load(seed=seed, accumulated=accumulated)
        self.images, self.images_a_step, self.seed = len(data.train), data.images_a_step, seed
        start = read_trunk(str(self.pretrained)) if self.pretrained else None
        mean, std = data.normalisation
        card = DenseCard(
            task=self.task,
            model=self.name,
            scheme=self.scheme,
            arguments={**(start.arguments if start else {}), **self.arguments},
            head=self.head,
            classes=images.classes,
            category_ids=images.category_ids,
            mean=mean,
            std=std,
            evaluation=self.evaluation(data),
            data=data.arguments(),
        )
        torch.manual_seed(seed)
        model = card.build()
        if start is not None:
            self.told = load_trunk(self.backbone_of(model), start)
        self._take(card, model)

    def take(self, card: DenseCard, model: torch.nn.Module, data: DetectionData | SegmentationData) -> None:
        """Take a checkpoint's model, to be tested on images.

        Args:
            card: Of the checkpoint.
            model: Of the checkpoint.
            data: The images, looked up here.

        Raises:
            UserError: The images cannot be read, or have other classes.
        """
        images = data.load()
        if images.classes != card.classes:
            raise UserError(
                f"{images.name} has {len(images.classes)} classes ({', '.join(images.classes[:5])} ...), the "
                f"checkpoint's model knows {len(card.classes)} ({', '.join(card.classes[:5])} ...): test it on images "
                "of the same classes."
            )
        self._take(card, model)

    @staticmethod
    def backbone_of(model: Any) -> Any:
        """Return the backbone of a model for the task."""
        return model.backbone

    def _take(self, card: DenseCard, model: torch.nn.Module) -> None:
        self.card = card
        self.model = model
        self.measure: Any = self.create_measure(card)

    def settings(self) -> dict[str, Any]:
        return {"head": self.head}

    @property
    def peak_rate(self) -> float:
        return self.recipe.lr

    def create_optimizer(self, *, fused: bool) -> torch.optim.Optimizer:
        return build_dense_optimizer(self.model, self.recipe, fused=fused)

    def create_schedule(self, optimizer: torch.optim.Optimizer, *, steps: int, epochs: int) -> Any:
        return build_dense_schedule(optimizer, self.recipe.schedule, steps=steps, steps_an_epoch=self.steps_an_epoch)

    def set_rates(self, schedule: Any) -> None:
        schedule.step()

    def compile_model(self, mode: str) -> None:
        self.backbone_of(self.model).compile(mode=mode)  # proposals and regions are of another number at each step

    def descend(self, losses: dict[str, Tensor]) -> Tensor:
        """Log the parts of a step's loss, and return their sum."""
        for name, part in losses.items():
            self.log(f"train/{name}", part.detach())
        loss = torch.stack(list(losses.values())).sum()
        self.watch_step(loss)
        return loss

    def on_validation_epoch_end(self) -> None:
        self._log_measure("val")

    def on_test_epoch_end(self) -> None:
        self._log_measure("test")

    def _log_measure(self, part: str) -> None:
        for name, value in self.measure.compute().items():
            self.log(f"{part}/{name}", value.float())
        self.measure.reset()
