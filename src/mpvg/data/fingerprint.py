"""Telling one set of images from another."""

from __future__ import annotations

import hashlib

from mpvg.data.splits import ImageData


def fingerprint(data: ImageData) -> str:
    """Return a short hash of all images and labels."""
    digest = hashlib.sha256()
    for split in (data.train, data.val, data.test):
        if split is not None:
            digest.update(repr(split.images.shape).encode())
            digest.update(split.images.tobytes())
            digest.update(split.labels.tobytes())
    return digest.hexdigest()[:16]
