"""Batches for training and testing; the order and all draws are functions of their numbers."""

from __future__ import annotations

from collections.abc import Sequence

from mpvg.data.augmentation import Augmentation
from mpvg.data.batch import Batch
from mpvg.data.images import Size
from mpvg.data.large.asked import EvalDraws, TrainDraws
from mpvg.data.large.split import LargeSplit
from mpvg.data.large.transforms import eval_transform, train_transform
from mpvg.data.large.workers import AnyBatch, AskedBatches, AskedImages, Loader, check_processes


class EpochLoader(Loader[AnyBatch]):
    """Batches of an epoch, from any batch on; made once for a training, and told the epoch before each iteration.

    Args:
        images: What reads and augments them.
        draws: What it is asked for.
        workers: Processes that read for this one; 0 reads in it.
        pin_memory: Put batches where a GPU can fetch them from.
    """

    def __init__(self, images: AskedBatches, draws: TrainDraws, *, workers: int, pin_memory: bool) -> None:
        super().__init__(images, draws, workers=workers, pin_memory=pin_memory)
        self._draws = draws

    @property
    def epoch_batches(self) -> int:
        """Batches of a whole epoch, as many for each rank."""
        return self._draws.batches

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Say which epoch the next iteration yields, and from which of its batches on; none before is read.

        Args:
            epoch: Number of the epoch from 0.
            first_batch: Number of the batch from 0; the number of batches yields nothing.

        Raises:
            UserError: There is no such batch.
        """
        self._draws.set_epoch(epoch, first_batch)


class TrainLoader(EpochLoader[Batch]):
    """Labelled images of an epoch, from any batch on.

    Iterating yields a `Batch` of batch_size / world_size images: places of batch b begin at b * batch_size, and rank r
    has every world_size-th from r on. The last incomplete batch is left out. With a split that is streamed, order
    depends on the number of workers and ranks, otherwise on neither; each image's augmentation is a function of
    (seed, epoch, place).

    Args:
        split: Images to train on.
        augmentation: What is drawn of each; its erasing and mixing are left to who takes the batches.
        size: Height and width in pixels.
        mean: Of each channel, of pixels from 0 to 1: what rotations and translations fill up with.
        batch_size: Images of a step over all ranks.
        seed: The run's seed, from 0.
        rank: This process.
        world_size: How many processes there are.
        workers: Processes that read for this one; 0 reads in it.
        pin_memory: Put batches where a GPU can fetch them from.

    Raises:
        UserError: The batch cannot be dealt out to the ranks, or is larger than an epoch.
    """

    def __init__(
        self,
        split: LargeSplit,
        *,
        augmentation: Augmentation,
        size: Size,
        mean: Sequence[float],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        transform = train_transform(augmentation, size, mean=mean)
        check_processes(workers, rank, world_size)
        draws = TrainDraws(
            split,
            repeats=augmentation.repeats,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            workers=workers,
        )
        images = AskedImages(split, transform, seed=seed, size=size, replace=True)
        super().__init__(images, draws, workers=workers, pin_memory=pin_memory)


class EvalLoader(Loader[Batch]):
    """Every image once over all ranks, in the order in which they lie; each rank has a part that follows another's.

    Iterating yields a `Batch`, whose positions are the numbers of the images; the last may be smaller. Ranks have as
    many batches as each other where there are images for all. Images that cannot be read are left out where the split
    says so.

    Args:
        split: Images to test.
        size: Height and width in pixels.
        crop: Part of the resized side that the centre has; None squeezes the whole image.
        interpolation: "bilinear" or "bicubic".
        batch_size: Images of a batch of one rank.
        rank: This process.
        world_size: How many processes there are.
        workers: Processes that read for this one; 0 reads in it.
        pin_memory: Put batches where a GPU can fetch them from.

    Raises:
        UserError: An option is out of range.
    """

    def __init__(
        self,
        split: LargeSplit,
        *,
        size: Size,
        crop: float | None,
        interpolation: str,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        transform = eval_transform(size, crop=crop, interpolation=interpolation)
        check_processes(workers, rank, world_size)
        draws = EvalDraws(len(split), batch_size=batch_size, rank=rank, world_size=world_size)
        images = AskedImages(split, transform, seed=0, size=size, replace=False)
        super().__init__(images, draws, workers=workers, pin_memory=pin_memory)
