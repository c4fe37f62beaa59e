"""A part of a large split, such as what is held out for validation."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mpvg.data.large.split import LargeSplit, Rows


def subset(split: LargeSplit, rows: Rows) -> LargeSplit:
    """Return some images of a split, in its order.

    Args:
        split: The split, whose labels are known.
        rows: Which images (N,), ascending.
    """
    return _Subset(split, rows)


class _Subset(LargeSplit):
    def __init__(self, split: LargeSplit, rows: Rows) -> None:
        assert split.labels is not None
        groups = split.groups
        if groups is not None:
            ends = np.cumsum(groups)
            groups = np.diff(np.searchsorted(rows, ends), prepend=0)
            groups = groups[groups > 0]
        super().__init__(
            count=len(rows),
            labels=split.labels[rows],
            groups=groups,
            streamed=split.streamed,
            skip_bad_images=split.skip_bad_images,
        )
        self._split, self._rows = split, rows
        self.skipped = split.skipped  # one account of a set

    def read(self, index: int) -> Image.Image:
        return self._split.read(int(self._rows[index]))

    def where(self, index: int) -> str:
        return self._split.where(int(self._rows[index]))

    def parts(self) -> list[str]:
        return self._split.parts()
