"""A labelled set of sentences or time series in memory, and its splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from mpvg.data.splits import LabelledSet

Series: TypeAlias = npt.NDArray[np.float32]
Items: TypeAlias = tuple[str, ...] | tuple[Series, ...]


@dataclass(frozen=True)
class Sequences:
    """Sentences, or series (T, C) as float32 whose lengths may differ, and labels (N,) as int64."""

    items: Items
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.int64]) -> Sequences:
        return Sequences(cast(Items, tuple(self.items[row] for row in rows.tolist())), self.labels[rows])

    def content(self) -> Iterator[bytes]:
        """Yield what tells the split from another, in bytes."""
        for item in self.items:
            if isinstance(item, str):
                encoded = item.encode()
                yield repr(len(encoded)).encode() + b" "
                yield encoded
            else:
                yield repr(item.shape).encode()
                yield item.tobytes()
        yield self.labels.tobytes()


@dataclass(frozen=True)
class SequenceData(LabelledSet[Sequences]):
    """A labelled set of sentences or series; its first fields are those of `LabelledSet`.

    Args:
        channels: Of every series; None for sentences.
        synthetic: Whether it was generated, so that it says nothing about real data.
    """

    channels: int | None = None
    synthetic: bool = False

    @property
    def unit(self) -> str:
        return "sentences" if self.channels is None else "series"
