"""Telling one labelled set from another."""

from __future__ import annotations

import hashlib
from typing import Any

from mpvg.data.splits import LabelledSet


def fingerprint(data: LabelledSet[Any]) -> str:
    """Return a short hash of all samples and labels."""
    digest = hashlib.sha256()
    for split in (data.train, data.val, data.test):
        if split is not None:
            for part in split.content():
                digest.update(part)
    return digest.hexdigest()[:16]
