"""The images of `mpvg fit` and `mpvg test` as Lightning wants them."""

from __future__ import annotations

import os
from typing import Any

import lightning

from mpvg.data.augmentation import Augmentation
from mpvg.data.batch import Batch
from mpvg.data.images import Size
from mpvg.data.large import EvalLoader, LargeData, LargeSplit, TrainLoader, large_from_memory, open_large
from mpvg.data.large.order import epoch_draws
from mpvg.data.large.subset import subset
from mpvg.data.preprocessing import Preprocessing, eval_batch_size
from mpvg.data.sources import ImageData, Split, absolute_source, layout_of, load_data, split_validation, validation_rows
from mpvg.errors import UserError, nearest
from mpvg.train.memory import EvalBatches, TrainBatches
from mpvg.train.processes import check_one_each
from mpvg.train.workers import WorkerBatches

_NO_AUGMENTATION = Augmentation(shift=0.0)
_INTERPOLATIONS = ("bicubic", "bilinear")
_OF_CARD = (
    "img_size", "val_fraction", "skip_bad_images", "workers", "streaming", "crop_pct", "interpolation", "seed",
)  # fmt: skip


class ImageDataModule(lightning.LightningDataModule):
    """Labelled images: in memory, or read by worker processes where `workers` is set.

    Args:
        source: "digits", a folder with train/ and test/ (or val/), an .npz file with MedMNIST's keys, NAME:FOLDER of
            one of torchvision's sets; with workers also Parquet files, WebDataset shards and hf:OWNER/NAME.
        batch_size: Images a step, over all devices; of accumulate_grad_batches such batches where those are named.
        img_size: Side to resize images to, in pixels; as they are by default, mixed sizes to the model's own.
        val_fraction: Part of train that becomes the validation split where the source has none, drawn by the seed; 0
            trains on all of it and watches the test split, as the official recipes do.
        skip_bad_images: Leave out images that cannot be read, and say which.
        workers: Processes that read and augment images while the model trains; by default all images are held in
            memory and augmented where the model computes.
        streaming: Read Parquet files once an epoch, from one end to the other.
        crop_pct: With workers, side of a tested image by that of the whole, of which the centre is taken; the whole
            image is squeezed into that side by default.
        interpolation: With workers, of the resizing of tested images: bicubic or bilinear.
        mean: Of each channel, of pixels from 0 to 1, to normalise by; by default that of the training images, or with
            workers of ImageNet.
        std: Of each channel, likewise.
    """

    def __init__(
        self,
        source: str = "digits",
        batch_size: int = 64,
        img_size: int | None = None,
        val_fraction: float = 0.2,
        skip_bad_images: bool = False,
        workers: int | None = None,
        streaming: bool = False,
        crop_pct: float | None = None,
        interpolation: str = "bicubic",
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: name a number of images, 1 or more.")
        if not 0 <= val_fraction < 1:
            raise UserError(f"val_fraction {val_fraction}: name a part from 0 to below 1.")
        if (mean is None) != (std is None) or (mean and std and (len(mean) != len(std) or not min(std) > 0)):
            raise UserError(f"mean {mean} and std {std} go together: name both, for each channel, or neither.")
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise UserError(f"crop_pct {crop_pct}: name a part above 0 and up to 1.")
        if interpolation not in _INTERPOLATIONS:
            guess = nearest(interpolation, _INTERPOLATIONS)
            raise UserError(f"interpolation {interpolation!r} is unknown{guess}: name bicubic or bilinear.")
        if workers is not None and workers < 0:
            raise UserError(f"workers {workers}: name a number from 0, or leave it out to hold images in memory.")
        self.source = source
        self.batch_size = batch_size
        self.img_size = img_size
        self.val_fraction = val_fraction
        self.skip_bad_images = skip_bad_images
        cannot_be_held = streaming or layout_of(source) == "container"
        self.workers = (os.cpu_count() or 1) if workers is None and cannot_be_held else workers
        if self.workers is None and (crop_pct is not None or interpolation != "bicubic"):
            raise UserError(
                f"crop_pct {crop_pct} and interpolation {interpolation!r} are for images that workers read: name "
                "--data.workers 4, say, or leave them out."
            )
        self.streaming = streaming
        self.crop_pct, self.interpolation = crop_pct, interpolation
        self.normalisation = None if mean is None or std is None else (tuple(mean), tuple(std))
        self.images: ImageData | LargeData | None = None
        self._loaders: list[TrainLoader | EvalLoader] = []

    def load(
        self,
        mixed_size: tuple[int, int],
        *,
        seed: int = 0,
        augmentation: Augmentation = _NO_AUGMENTATION,
        accumulated: int = 1,
    ) -> ImageData | LargeData:
        """Read the images, or with workers see where they are.

        Args:
            mixed_size: Height and width to which images of mixed sizes are resized.
            seed: Of the validation split, of the batches' order and of all that is drawn of the images.
            augmentation: Of the training images.
            accumulated: Batches that a step of the optimiser is made of.

        Raises:
            UserError: The images cannot be read, or are too few for a step.
        """
        self.seed, self.augmentation, self.accumulated = seed, augmentation, accumulated
        side = self.img_size
        images: ImageData | LargeData
        if self.workers is None:
            images = self._load(self.source, img_size=side, mixed_size=mixed_size)
            self.image_size, self.channels = images.image_size, images.channels
        else:
            images = self._open(self.source)
            self.image_size, self.channels = mixed_size if side is None else (side, side), 3
        self.images = images
        if self.normalisation is not None and len(self.normalisation[0]) != self.channels:
            raise UserError(
                f"mean {self.normalisation[0]} is of {len(self.normalisation[0])} channels, the images of "
                f"{images.name} have {self.channels}: name as many, or leave mean and std out."
            )
        self.train, self.val = self._splits(images)
        self.images_a_step = min(self.batch_size, epoch_draws(len(self.train), augmentation.repeats))
        if augmentation.mixes and self.images_a_step < self.batch_size:
            self.images_a_step -= self.images_a_step % 2  # mixing pairs them
        if not self.steps_an_epoch:
            raise UserError(
                f"accumulate_grad_batches {accumulated} times {self.images_a_step} images a batch are more than the "
                f"{len(self.train)} to train on: take fewer."
            )
        return images

    def _load(self, source: str, *, img_size: int | None = None, mixed_size: Size | None = None) -> ImageData:
        return load_data(
            source,
            img_size=img_size,
            mixed_size=mixed_size,
            skip_bad_images=self.skip_bad_images,
            holds_out=self.val_fraction > 0,
        )

    def _open(self, source: str) -> LargeData:
        if layout_of(source) == "arrays" and not self.streaming:
            return large_from_memory(self._load(source))
        return open_large(source, streaming=self.streaming, skip_bad_images=self.skip_bad_images)

    def _splits(self, images: ImageData | LargeData) -> tuple[Any, Any]:
        if self.watches_test:
            return images.train, images.test
        if isinstance(images, ImageData):
            return split_validation(images, fraction=self.val_fraction, seed=self.seed)
        if images.val is not None:
            return images.train, images.val
        if images.train.labels is None:
            raise UserError(f"{images.name} has no val split, and labels unread: name --val-fraction 0.")
        train, val = validation_rows(
            images.train.labels, len(images.classes), fraction=self.val_fraction, seed=self.seed
        )
        return subset(images.train, train), subset(images.train, val)

    @property
    def watches_test(self) -> bool:
        """Whether training is watched on the test split, so that no epoch may be chosen by what is seen."""
        assert self.images is not None
        return self.val_fraction == 0 and self.images.val is None

    @property
    def steps_an_epoch(self) -> int:
        draws = epoch_draws(len(self.train), self.augmentation.repeats)
        return draws // (self.images_a_step * self.accumulated)

    def preprocessing(self, expected: tuple[tuple[float, ...], tuple[float, ...]] | None) -> Preprocessing:
        """Return what images go through before the model.

        Args:
            expected: Mean and deviation that pretrained weights expect; None for none.
        """
        if isinstance(self.train, Split):
            found = Preprocessing.of(self.train)
        else:
            found = Preprocessing.of_imagenet(self.image_size, crop=self.crop_pct, interpolation=self.interpolation)
        found = found.with_normalisation(self.normalisation or expected)
        self.mean = found.mean  # what rotations leave bare is filled with it
        return found

    def arguments(self) -> dict[str, Any]:
        """Return what a checkpoint's card keeps of the data."""
        return {"source": absolute_source(self.source), **{name: getattr(self, name) for name in _OF_CARD}}

    def train_dataloader(self) -> TrainBatches | WorkerBatches[Batch]:
        trainer: Any = self.trainer
        shared: dict[str, Any] = {
            "augmentation": self.augmentation,
            "mean": self.mean,
            "batch_size": self.images_a_step,
            "seed": self.seed,
        }
        if isinstance(self.train, Split):
            return TrainBatches(self.train, trainer, **shared)
        loader = TrainLoader(self.train, size=self.image_size, **shared, **self._processes())
        self._loaders.append(loader)
        return WorkerBatches(loader, trainer, batch_size=self.images_a_step)

    def val_dataloader(self) -> EvalBatches | EvalLoader:
        return self._evaluated(self.val)

    def test_dataloader(self) -> EvalBatches | EvalLoader:
        assert self.images is not None
        return self._evaluated(self.images.test)

    def _evaluated(self, split: Split | LargeSplit) -> EvalBatches | EvalLoader:
        assert self.trainer is not None
        check_one_each(len(split), self.trainer.world_size)
        if isinstance(split, Split):
            return EvalBatches(split, self.trainer)
        loader = EvalLoader(
            split,
            size=self.image_size,
            crop=self.crop_pct,
            interpolation=self.interpolation,
            batch_size=eval_batch_size(self.image_size),
            **self._processes(),
        )
        self._loaders.append(loader)
        return loader

    def teardown(self, stage: str) -> None:
        """End the processes that read; left to the garbage collector, each would take seconds to end."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def _processes(self) -> dict[str, Any]:
        trainer: Any = self.trainer
        return {
            "workers": self.workers if self.streaming else min(self.workers or 0, os.cpu_count() or 1),
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "pin_memory": trainer.strategy.root_device.type == "cuda",
        }
