"""A set in memory, enlarged and augmented as if it were a large one."""

from __future__ import annotations

from PIL import Image

from mpvg.data.fingerprint import fingerprint
from mpvg.data.large.split import LargeData, LargeSplit
from mpvg.data.splits import ImageData, Split


def large_from_memory(data: ImageData) -> LargeData:
    """Return a set in memory as a large one: each image is made a picture as it is drawn.

    Args:
        data: The images.

    Returns:
        The same splits, classes and note.
    """
    told = fingerprint(data)
    return LargeData(
        name=data.name,
        note=data.note,
        classes=data.classes,
        train=_MemorySplit(data.train, f"{data.name}: train", told),
        val=None if data.val is None else _MemorySplit(data.val, f"{data.name}: val", told),
        test=_MemorySplit(data.test, f"{data.name}: test", told),
    )


class _MemorySplit(LargeSplit):
    def __init__(self, split: Split, name: str, told: str) -> None:
        super().__init__(count=len(split), labels=split.labels)
        self._images, self._name, self._told = split.images, name, told

    def read(self, index: int) -> Image.Image:
        pixels = self._images[index]
        return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")

    def where(self, index: int) -> str:
        return f"{self._name}: image {index}"

    def parts(self) -> list[str]:
        return [self._told]
