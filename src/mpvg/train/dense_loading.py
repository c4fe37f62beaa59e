"""What images of both dense tasks share as Lightning wants them."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any, Generic

import lightning
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mpvg.data.dense.loaders import Collate, DenseEvalLoader, DenseTrainLoader, Transform
from mpvg.data.dense.split import DenseData, DenseSplit, Repeated
from mpvg.data.large.workers import AnyBatch
from mpvg.data.sources import absolute_source
from mpvg.errors import UserError
from mpvg.train.processes import check_one_each
from mpvg.train.workers import WorkerBatches


class DenseDataModule(lightning.LightningDataModule, Generic[AnyBatch]):
    """What both kinds of images share: they stay on disk, and are read one by one.

    Args:
        source: Where they are.
        batch_size: Images a step, over all devices; of accumulate_grad_batches such batches where those are named.
        repeats: How often an epoch has each training image.
        skip_bad_images: Leave out images that cannot be read, and say which.
        workers: Processes that read and augment images while the model trains, at most one a core; 0 reads them in the
            training's own.
    """

    normalisation = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    streaming = False
    collate: Collate[AnyBatch]
    of_card: tuple[str, ...] = ("repeats", "skip_bad_images", "workers", "seed")

    def __init__(self, *, source: str, batch_size: int, repeats: int, skip_bad_images: bool, workers: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: name a number of images, 1 or more.")
        if repeats < 1:
            raise UserError(f"repeats {repeats}: name how often an epoch has each image, 1 or more times.")
        if workers < 0:
            raise UserError(f"workers {workers}: name a number of processes, or 0 to read in the training's own.")
        self.source, self.batch_size, self.repeats = source, batch_size, repeats
        self.skip_bad_images, self.workers = skip_bad_images, workers
        self.images: DenseData | None = None
        self._loaders: list[DenseTrainLoader[AnyBatch] | DenseEvalLoader[AnyBatch]] = []

    @abstractmethod
    def open(self) -> DenseData:
        """Return the set, of which nothing is decoded but what must be checked."""

    @abstractmethod
    def train_transform(self) -> Transform:
        """Return what is drawn of a training image."""

    @abstractmethod
    def eval_transform(self) -> Transform:
        """Return what is made of an image that is evaluated."""

    def load(self, *, seed: int = 0, accumulated: int = 1) -> DenseData:
        """See where the images are, and check what is annotated.

        Args:
            seed: Of the batches' order and of all that is drawn of the images.
            accumulated: Batches that a step of the optimiser is made of.

        Raises:
            UserError: The set does not hold together, or is too small for a step.
        """
        self.seed, self.accumulated = seed, accumulated
        self.images = self.open()
        train, val = self.images.train, self.images.val or self.images.test
        assert isinstance(train, DenseSplit)
        assert isinstance(val, DenseSplit)
        self.train, self.val = train if self.repeats == 1 else Repeated(train, self.repeats), val
        self.images_a_step = min(self.batch_size, len(self.train))
        if not self.steps_an_epoch:
            raise UserError(
                f"accumulate_grad_batches {accumulated} times {self.images_a_step} images a batch are more than the "
                f"{len(self.train)} to train on: take fewer."
            )
        return self.images

    @property
    def watches_test(self) -> bool:
        """Whether training is watched on the images that it is tested on, or trains on, for want of others."""
        assert self.images is not None
        return self.images.val is None

    @property
    def steps_an_epoch(self) -> int:
        return len(self.train) // (self.images_a_step * self.accumulated)

    def arguments(self) -> dict[str, Any]:
        """Return what a checkpoint's card keeps of the data."""
        return {"source": absolute_source(self.source), **{name: getattr(self, name) for name in self.of_card}}

    def train_dataloader(self) -> WorkerBatches[AnyBatch]:
        loader = DenseTrainLoader(
            self.train,
            self.train_transform(),
            self.collate,
            batch_size=self.images_a_step,
            seed=self.seed,
            **self._processes(),
        )
        self._loaders.append(loader)
        return WorkerBatches(loader, self.trainer, batch_size=self.images_a_step)

    def val_dataloader(self) -> DenseEvalLoader[AnyBatch]:
        return self._evaluated(self.val)

    def test_dataloader(self) -> DenseEvalLoader[AnyBatch]:
        assert self.images is not None
        assert isinstance(self.images.test, DenseSplit)
        return self._evaluated(self.images.test)

    def teardown(self, stage: str) -> None:
        """End the processes that read; left to the garbage collector, each would take seconds to end."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def _evaluated(self, split: DenseSplit[Any]) -> DenseEvalLoader[AnyBatch]:
        assert self.trainer is not None
        check_one_each(len(split), self.trainer.world_size)
        loader = DenseEvalLoader(split, self.eval_transform(), self.collate, **self._processes())
        self._loaders.append(loader)
        return loader

    def _processes(self) -> dict[str, Any]:
        trainer: Any = self.trainer
        return {
            "workers": min(self.workers, os.cpu_count() or 1),
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "pin_memory": trainer.strategy.root_device.type == "cuda",
        }
