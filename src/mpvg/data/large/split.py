"""What a labelled set that is too large for memory offers, in whichever container it lies."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

Rows = npt.NDArray[np.int64]


class LargeSplit(ABC):
    """Images that are read one by one, and their labels; a copy of it lives in every worker process.

    Args:
        count: How many images it has.
        labels: Labels (N,) as int64; None where only reading an image tells its label.
        groups: How many images lie together, shard by shard, in the order of the images: reading is quick where an
            order stays within some of them. None where any order is as quick.
        streamed: Each group is best read once an epoch, by one process.
        skip_bad_images: Replace images that cannot be read (in training) or leave them out (in testing).
    """

    def __init__(
        self,
        *,
        count: int,
        labels: Rows | None,
        groups: Rows | None = None,
        streamed: bool = False,
        skip_bad_images: bool = False,
    ) -> None:
        assert labels is None or len(labels) == count
        assert groups is None or groups.sum() == count
        self.count, self.labels, self.groups = count, labels, groups
        self.streamed, self.skip_bad_images = streamed, skip_bad_images
        self.skipped: dict[str, str] = {}  # where: reason, of the images that were replaced or left out until now

    def __len__(self) -> int:
        return self.count

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """Return an image, decoded, upright and RGB; BadImageError names one that cannot be read."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Return where an image lies, for errors."""

    @abstractmethod
    def parts(self) -> list[str]:
        """Return what tells this split from another without reading images, such as names and sizes of files."""

    def label(self, index: int) -> int:
        """Return an image's label."""
        assert self.labels is not None  # where it is None, reading is needed, and this is overridden
        return int(self.labels[index])


@dataclass(frozen=True)
class LargeData:
    """A labelled set that stays on disk or on a server.

    Args:
        name: What to call it.
        note: Where it is from, in a sentence.
        classes: Names of the classes, by label.
        train: The training split.
        val: The validation split; None where the source has none.
        test: The split that accuracy is reported on.
        remarks: What must be known of the set before its results are read, in sentences.
    """

    name: str
    note: str
    classes: tuple[str, ...]
    train: LargeSplit
    val: LargeSplit | None
    test: LargeSplit
    remarks: tuple[str, ...] = ()
    _hash: list[str] = field(default_factory=list, repr=False, compare=False)

    def fingerprint(self) -> str:
        """Return a short hash of names, sizes and labels, not of pixels; it takes seconds for a million files."""
        if not self._hash:
            digest = hashlib.sha256(repr(self.classes).encode())
            for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
                if split is not None:
                    digest.update(f"{name} {len(split)}\n".encode())
                    digest.update("\n".join(split.parts()).encode(errors="surrogateescape"))
                    if split.labels is not None:
                        digest.update(split.labels.tobytes())
            self._hash.append(digest.hexdigest()[:16])
        return self._hash[0]

    @property
    def skipped(self) -> tuple[str, ...]:
        """ "where: reason" of each image that could not be read and was passed over until now."""
        splits = [split for split in (self.train, self.val, self.test) if split is not None]
        found = {where: reason for split in splits for where, reason in sorted(split.skipped.items())}
        return tuple(f"{where}: {reason}" for where, reason in found.items())  # once, where splits share an image
