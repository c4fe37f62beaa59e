"""Worker processes that read and augment what they are told to, and the loader that tells them."""

from __future__ import annotations

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mpvg.data.batch import Batch
from mpvg.data.images import BadImageError, Size
from mpvg.data.large.split import LargeSplit, Rows
from mpvg.data.large.transforms import Transform, drawing
from mpvg.errors import UserError

AnyBatch = TypeVar("AnyBatch")
Found = TypeVar("Found")


class Draws(NamedTuple):
    """What a worker is told: which images, and by which numbers to augment them."""

    epoch: int
    positions: Rows
    indices: Rows


class Done(NamedTuple):
    """What a worker returns: a batch, None where none of its images could be read, and the images passed over."""

    batch: Any
    skipped: list[tuple[str, str]]


class AskedBatches(Dataset[Done | UserError], ABC):
    """Reads a batch at once; it holds no state between two."""

    def __init__(self, split: LargeSplit, *, seed: int, replace: bool) -> None:
        self.split, self.seed, self.replace = split, seed, replace

    def __getitem__(self, draws: Draws) -> Done | UserError:
        skipped: list[tuple[str, str]] = []
        try:
            return Done(self.batch(draws, skipped), skipped)
        except UserError as error:  # returned, for what a worker raises is shown with a traceback
            return error
        except OSError as error:  # of a shard
            return UserError(f"{error.filename} cannot be read ({error.strerror}): put it back as it was.")

    @abstractmethod
    def batch(self, draws: Draws, skipped: list[tuple[str, str]]) -> Any:
        """Return the batch, or None where it is empty, and add to `skipped` what could not be read."""

    def readable(
        self, index: int, read: Callable[[int], Found], skipped: list[tuple[str, str]]
    ) -> tuple[int, Found] | None:
        """Return an image's index and what is read of it; of one that is bad, the next that is not, or None."""
        for _ in range(len(self.split)):
            try:
                return index, read(index)
            except BadImageError as error:
                if not self.split.skip_bad_images:
                    raise error.with_option() from error
                skipped.append((str(error.path), error.reason))
            if not self.replace:
                return None
            index = (index + 1) % len(self.split)
        raise UserError(
            f"{skipped[0][0]} and all {len(self.split)} images of its split cannot be read: check the path."
        )


class AskedImages(AskedBatches):
    """Reads and transforms a batch of labelled images, in the order in which they lie."""

    def __init__(self, split: LargeSplit, transform: Transform, *, seed: int, size: Size, replace: bool) -> None:
        super().__init__(split, seed=seed, replace=replace)
        self.transform, self.size = transform, size

    def batch(self, draws: Draws, skipped: list[tuple[str, str]]) -> Batch | None:
        pixels = torch.empty((len(draws.indices), 3, *self.size), dtype=torch.uint8)
        labels = torch.full((len(draws.indices),), -1)
        with drawing() as draw:
            found, read = None, -1
            for row in np.argsort(draws.indices, kind="stable").tolist():
                if draws.indices[row] != read:  # repeats of an image are read once
                    read = int(draws.indices[row])
                    found = self.readable(read, self.split.read, skipped)
                if found is not None:
                    draw(self.seed, draws.epoch, int(draws.positions[row]))
                    pixels[row] = self.transform(found[1])
                    labels[row] = self.split.label(found[0])
        kept = labels >= 0
        positions = torch.from_numpy(draws.positions)
        if kept.all():
            return Batch(pixels, labels, positions)
        return Batch(pixels[kept], labels[kept], positions[kept]) if kept.any() else None


class Asked(Protocol):
    """What the workers are told in an iteration, as a sampler."""

    def __iter__(self) -> Iterator[Draws]: ...

    def __len__(self) -> int: ...


class Loader(Generic[AnyBatch]):
    """What all loaders share: workers that are kept over epochs, and errors without a worker's traceback.

    It does not know what it asks for, which would make a cycle: Python would end the workers late, and in seconds each.
    """

    def __init__(self, images: AskedBatches, asked: Asked, *, workers: int, pin_memory: bool) -> None:
        self.split, self.images, self._asked = images.split, images, asked
        self._loader: DataLoader[Done | UserError] | None = DataLoader(
            images,
            batch_size=None,
            sampler=asked,
            num_workers=workers,
            collate_fn=_as_it_is,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_parent,
            generator=torch.Generator(),  # or DataLoader draws from the global one, once an epoch
        )

    def __len__(self) -> int:
        """Batches of this rank in the next iteration."""
        return len(self._asked)

    def __iter__(self) -> Iterator[AnyBatch]:
        assert self._loader is not None, "it was closed"
        for done in self._loader:
            if isinstance(done, UserError):
                self.close()  # at once: its traceback keeps what it was raised in
                raise done
            self.split.skipped.update(done.skipped)
            if done.batch is not None:
                yield done.batch

    def close(self) -> None:
        """End the workers; the loader cannot be used again."""
        self._loader = None


def check_processes(workers: int, rank: int, world_size: int) -> None:
    """Raise a UserError where there are less than no workers, or the rank is none of the processes."""
    if workers < 0:
        raise UserError(f"workers {workers}: use 0 to read in the process itself, or more.")
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} of {world_size} processes: ranks count from 0.")


def _as_it_is(done: Any) -> Any:
    return done


def _leave_signals_to_parent(worker: int) -> None:
    """Have a worker end at its parent's SIGTERM alone: one to all processes is for the parent, who still needs it."""
    if not hasattr(signal, "sigwaitinfo"):  # not on macOS
        return
    numbers, parent = (signal.SIGTERM, signal.SIGUSR1), os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def wait() -> None:
        while signal.sigwaitinfo(numbers).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
