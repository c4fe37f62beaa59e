"""Worker processes that read and augment what they are told to, and the loader that tells them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mpvg.data.batch import Batch
from mpvg.data.images import BadImageError, Size
from mpvg.data.large.split import LargeSplit, Rows
from mpvg.data.large.transforms import Transform, drawing
from mpvg.errors import UserError


class Draws(NamedTuple):
    """What a worker is told: which images, and by which numbers to augment them."""

    epoch: int
    positions: Rows
    indices: Rows


class _Done(NamedTuple):
    """What a worker returns: a batch, and the images that it passed over."""

    batch: Batch
    skipped: list[tuple[str, str]]


class AskedImages(Dataset[_Done | UserError]):
    """Reads and transforms a batch at once, in the order in which its images lie; it holds no state between two."""

    def __init__(self, split: LargeSplit, transform: Transform, *, seed: int, size: Size, replace: bool) -> None:
        self.split, self.transform, self.seed, self.size, self.replace = split, transform, seed, size, replace

    def __getitem__(self, draws: Draws) -> _Done | UserError:
        pixels = torch.empty((len(draws.indices), 3, *self.size), dtype=torch.uint8)
        labels = torch.full((len(draws.indices),), -1)
        skipped: list[tuple[str, str]] = []
        try:
            with drawing() as draw:
                found, read = None, -1
                for row in np.argsort(draws.indices, kind="stable").tolist():
                    if draws.indices[row] != read:  # repeats of an image are read once
                        read = int(draws.indices[row])
                        found = self._read(read, skipped)
                    if found is not None:
                        draw(self.seed, draws.epoch, int(draws.positions[row]))
                        pixels[row] = self.transform(found[1])
                        labels[row] = self.split.label(found[0])
        except UserError as error:  # returned, for what a worker raises is shown with a traceback
            return error
        except OSError as error:  # of a shard
            return UserError(f"{error.filename} cannot be read ({error.strerror}): put it back as it was.")
        kept = labels >= 0
        positions = torch.from_numpy(draws.positions)
        batch = (pixels, labels, positions) if kept.all() else (pixels[kept], labels[kept], positions[kept])
        return _Done(Batch(*batch), skipped)

    def _read(self, index: int, skipped: list[tuple[str, str]]) -> tuple[int, Image.Image] | None:
        """Return an image and its index; for one that is bad, those of the image that lies behind it, or None."""
        for _ in range(len(self.split)):
            try:
                return index, self.split.read(index)
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


class Asked(Protocol):
    """What the workers are told in an iteration, as a sampler."""

    def __iter__(self) -> Iterator[Draws]: ...

    def __len__(self) -> int: ...


class Loader:
    """What both loaders share: workers that are kept over epochs, and errors without a worker's traceback.

    It does not know what it asks for, which would make a cycle: Python would end the workers late, and in seconds each.
    """

    def __init__(self, images: AskedImages, asked: Asked, *, workers: int, pin_memory: bool) -> None:
        self.split, self.images, self._asked = images.split, images, asked
        self._loader: DataLoader[_Done | UserError] | None = DataLoader(
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

    def __iter__(self) -> Iterator[Batch]:
        assert self._loader is not None, "it was closed"
        for done in self._loader:
            if isinstance(done, UserError):
                self.close()  # at once: its traceback keeps what it was raised in
                raise done
            self.split.skipped.update(done.skipped)
            if len(done.batch.labels):
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
