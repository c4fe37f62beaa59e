"""The images of `mpvg fit` and `mpvg test` as Lightning wants them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
from torch import Tensor

from mpvg.data.batches import epoch_batches
from mpvg.data.preprocessing import eval_batch_size, to_tensors
from mpvg.data.sources import ImageData, Split, absolute_source, load_data, split_validation
from mpvg.errors import UserError

Batch = tuple[Tensor, Tensor]


class ImageDataModule(lightning.LightningDataModule):
    """Labelled images of any source that `mpvg compare` takes.

    Args:
        source: "digits", a folder with train/ and test/, an .npz file with MedMNIST's keys, or NAME:FOLDER of one of
            torchvision's sets.
        batch_size: Images a step, over all devices.
        img_size: Side to resize images to, in pixels; as they are by default, mixed sizes to the model's own.
        val_fraction: Part of train that becomes the validation split where the source has none, drawn by the seed.
        skip_bad_images: Leave out images that cannot be read, and say which.
    """

    def __init__(
        self,
        source: str = "digits",
        batch_size: int = 64,
        img_size: int | None = None,
        val_fraction: float = 0.2,
        skip_bad_images: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size {batch_size}: name a number of images, 1 or more.")
        if not 0 < val_fraction < 1:
            raise UserError(f"val_fraction {val_fraction}: name a part between 0 and 1.")
        self.source = source
        self.batch_size = batch_size
        self.img_size = img_size
        self.val_fraction = val_fraction
        self.skip_bad_images = skip_bad_images
        self.images: ImageData | None = None

    def load(self, mixed_size: tuple[int, int], *, seed: int = 0, shift: float = 0.0) -> ImageData:
        """Read the images.

        Args:
            mixed_size: Height and width to which images of mixed sizes are resized.
            seed: Of the validation split, of the batches' order and of the shifts.
            shift: Largest shift of a training image, as a part of its side.

        Raises:
            UserError: The images cannot be read.
        """
        self.seed, self.shift = seed, shift
        self.images = load_data(
            self.source, img_size=self.img_size, mixed_size=mixed_size, skip_bad_images=self.skip_bad_images
        )
        self.train, self.val = split_validation(self.images, fraction=self.val_fraction, seed=seed)
        return self.images

    def arguments(self) -> dict[str, Any]:
        """Return what a checkpoint's card keeps of the data."""
        names = ("img_size", "val_fraction", "skip_bad_images", "seed")
        return {"source": absolute_source(self.source), **{name: getattr(self, name) for name in names}}

    @property
    def steps_an_epoch(self) -> int:
        return max(len(self.train) // self.batch_size, 1)

    def train_dataloader(self) -> TrainBatches:
        return TrainBatches(self)

    def val_dataloader(self) -> EvalBatches:
        return EvalBatches(self.val)

    def test_dataloader(self) -> EvalBatches:
        assert self.images is not None
        return EvalBatches(self.images.test)


class TrainBatches:
    """The batches of the trainer's current epoch, a function of (seed, epoch): an epoch begun again is the same."""

    def __init__(self, data: ImageDataModule) -> None:
        self.data = data
        self.batch_size = min(data.batch_size, len(data.train))
        self.pixels, self.labels = to_tensors(data.train)

    def __len__(self) -> int:
        return self.data.steps_an_epoch

    def __iter__(self) -> Iterator[Batch]:
        assert self.data.trainer is not None
        # read with the first batch: where a training goes on, Lightning makes the iterator before it counts the epoch
        batches = epoch_batches(
            self.pixels,
            self.labels,
            batch_size=self.batch_size,
            shift=int(self.data.shift * min(self.pixels.shape[2:])),
            seed=self.data.seed,
            epoch=self.data.trainer.current_epoch,
        )
        mine = slice(self.data.trainer.global_rank, None, self.data.trainer.world_size)
        for pixels, labels in batches:
            yield pixels[mine], labels[mine]


class EvalBatches:
    """A split in its own order."""

    def __init__(self, split: Split) -> None:
        self.pixels, self.labels = to_tensors(split)
        self.batch_size = eval_batch_size((split.images.shape[1], split.images.shape[2]))

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return zip(self.pixels.split(self.batch_size), self.labels.split(self.batch_size), strict=True)
