"""What must be known of a labelled set before its results are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpvg.data.large import LargeData
from mpvg.data.splits import LabelledSet

IMBALANCED_ABOVE = 1.5  # training images of the largest class by those of the smallest


def remarks(data: LabelledSet[Any] | LargeData) -> list[str]:
    """Say that classes are imbalanced and that images or objects were left out, where it is so."""
    found = list(data.remarks) if isinstance(data, LargeData) else []
    if isinstance(data, LabelledSet) and data.imbalance > IMBALANCED_ABOVE:
        most = int(np.argmax(data.class_counts))
        share = (data.test.labels == most).mean()
        found.append(
            f"Classes are imbalanced, {min(data.class_counts)} to {max(data.class_counts)} training {data.unit} "
            f"each: always answering {data.classes[most]!r} would have {100 * share:.2f} % accuracy."
        )
    return found + _left_out(data)


def told_late(data: LabelledSet[Any] | LargeData) -> list[str]:
    """Say which images were left out, where that is known only once they have been read."""
    return _left_out(data) if isinstance(data, LargeData) else []


def _left_out(data: LabelledSet[Any] | LargeData) -> list[str]:
    if not data.skipped:
        return []
    images = "1 image" if len(data.skipped) == 1 else f"{len(data.skipped)} images"
    return [f"Left out as unreadable: {images}; the first is {data.skipped[0]}."]
