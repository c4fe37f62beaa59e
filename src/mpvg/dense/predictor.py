"""Trained detectors and segmenters at work: from images to objects and class maps, and to files of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow
from torch import Tensor

from mpvg.data.dense.sizes import fitted, rounded_up
from mpvg.data.dense.transforms_detection import resized_pixels
from mpvg.data.dense.transforms_segmentation import MULTIPLE
from mpvg.data.images import read_picture, to_pixels
from mpvg.dense.card import DETECTION, DenseCard
from mpvg.dense.detection import MASK_THRESHOLD
from mpvg.errors import UserError
from mpvg.files import write_atomically
from mpvg.predict import Image, listed

_LARGEST_ID = 2**8 - 1  # of a mask of bytes


class Detections(NamedTuple):
    """The objects that were found in an image, the surest first, in pixels of the image.

    Args:
        file: The image's path; None for an image that was no file.
        boxes: (N, 4) as x1, y1, x2, y2.
        labels: (N,) from 1, by the classes' order.
        names: Of the classes.
        scores: (N,) from 0 to 1.
        masks: (N, H, W), one inside.
    """

    file: str | None
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    masks: npt.NDArray[np.uint8]


class ClassMap(NamedTuple):
    """The class of each pixel of an image.

    Args:
        file: The image's path; None for an image that was no file.
        labels: (H, W) from 0, by the classes' order.
    """

    file: str | None
    labels: npt.NDArray[np.int64]


class DensePredictor:
    """What detectors and segmenters share.

    Args:
        card: Of the model's checkpoint.
        model: The model, in eval mode.
        device: Where to compute.
    """

    def __init__(self, card: DenseCard, model: Any, device: torch.device | str = "cpu") -> None:
        self.card = card
        self.model = model.to(device)
        self.device = device

    @property
    def classes(self) -> tuple[str, ...]:
        return self.card.classes

    def read(self, image: Image) -> npt.NDArray[np.uint8]:
        """Return an image's pixels (H, W, 3) in its own size; those of a file as they are stored, as in training.

        Raises:
            UserError: It cannot be read.
        """
        if isinstance(image, str | Path):
            return np.array(read_picture(Path(image), upright=False))
        return to_pixels(image, size=None, channels=3)

    def _seen(self, pixels: npt.NDArray[np.uint8], *, multiple: int = 1) -> Tensor:
        """Return an image (3, h, w) in uint8 at the size at which images were evaluated."""
        evaluation = self.card.evaluation
        size = fitted((pixels.shape[0], pixels.shape[1]), short=evaluation["scale"], long=evaluation["long"])
        stored = torch.from_numpy(pixels).permute(2, 0, 1)
        return resized_pixels(stored, rounded_up(size, multiple)).to(self.device)


class Detector(DensePredictor):
    """Finds objects."""

    def predict(self, images: Image | Iterable[Image]) -> list[Detections]:
        """Find the objects of images.

        Args:
            images: One or more: paths, Pillow images, or arrays (H, W), (H, W, 1) or (H, W, 3) in uint8.

        Raises:
            UserError: An image cannot be read.
        """
        return [self.detect(self.read(image), file=_file(image)) for image in listed(images)]

    @torch.inference_mode()
    def detect(self, pixels: npt.NDArray[np.uint8], *, file: str | None = None) -> Detections:
        """Find the objects of an image that `read` has read.

        Args:
            pixels: (H, W, 3).
            file: The image's path.
        """
        (found,) = self.model.detect([self._seen(pixels)], [pixels.shape[:2]])
        arrays = {name: value.cpu() for name, value in found.items()}
        labels = arrays["labels"].numpy()
        return Detections(
            file=file,
            boxes=arrays["boxes"].numpy(),
            labels=labels,
            names=tuple(self.classes[label - 1] for label in labels),
            scores=arrays["scores"].numpy(),
            masks=(arrays["masks"][:, 0] >= MASK_THRESHOLD).numpy().astype(np.uint8),
        )


class Segmenter(DensePredictor):
    """Names pixels."""

    def predict(self, images: Image | Iterable[Image]) -> list[ClassMap]:
        """Name the pixels of images.

        Args:
            images: As for `Detector.predict`.

        Raises:
            UserError: An image cannot be read.
        """
        return [self.segment(self.read(image), file=_file(image)) for image in listed(images)]

    @torch.inference_mode()
    def segment(self, pixels: npt.NDArray[np.uint8], *, file: str | None = None) -> ClassMap:
        """Name the pixels of an image that `read` has read; arguments are those of `Detector.detect`."""
        seen = self.card.normalised(self._seen(pixels, multiple=MULTIPLE)[None])
        labels = self.model.segment(seen, pixels.shape[:2], window=self.card.evaluation["window"])
        return ClassMap(file=file, labels=labels[0].cpu().numpy())


def create_predictor(card: DenseCard, model: Any, device: torch.device | str = "cpu") -> Detector | Segmenter:
    """Return what predicts with a checkpoint's model.

    Args:
        card: Of the checkpoint.
        model: The model, in eval mode.
        device: Where to compute.
    """
    return (Detector if card.task == DETECTION else Segmenter)(card, model, device)


def image_ids(files: Sequence[str | None]) -> list[int]:
    """Return the images' ids: the numbers that their names are, as in COCO, or where one is none their places from 1.

    Args:
        files: Paths of the images.
    """
    stems = [Path(file).stem if file is not None else "" for file in files]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    return numbers if len(set(numbers)) == len(files) else list(range(1, len(files) + 1))


def write_mask(path: Path, found: ClassMap, category_ids: Sequence[int]) -> None:
    """Write a class map as a grey PNG of the set's own numbers: ADE20K's begin at 1, as its files have them.

    Args:
        path: The file; one already there is replaced in one step.
        found: The map.
        category_ids: The set's own numbers of the classes, by label.

    Raises:
        UserError: A number is too large for a PNG of 16 bits.
        OSError: The file cannot be written.
    """
    numbers = np.asarray(category_ids)
    kind: Any = np.uint8 if numbers.max(initial=0) <= _LARGEST_ID else np.uint16
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) > np.iinfo(kind).max:
        raise UserError(f"{path}: a PNG holds numbers from 0 to 65535, and classes have {numbers.max()}.")
    picture = Pillow.fromarray(numbers.astype(kind)[found.labels])
    write_atomically(path, lambda draft: picture.save(draft, format="PNG"))


def as_lines(found: Detections) -> Iterator[Mapping[str, Any]]:
    """Return what is printed of each object: its name, score and box."""
    for name, score, box in zip(found.names, found.scores.tolist(), found.boxes.tolist(), strict=True):
        yield {"name": name, "score": round(score, 6), "box": [round(corner, 2) for corner in box]}


def _file(image: Image) -> str | None:
    return str(image) if isinstance(image, str | Path) else None
