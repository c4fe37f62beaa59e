"""Trained models at work: `mpvg.load(checkpoint).predict(images)`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow
from timm.layers import to_2tuple
from torch import Tensor

from mpvg.checkpoint import Card, load_model, resize
from mpvg.data.images import read_image, to_pixels
from mpvg.data.large import eval_transform

Image = Any  # a path, a Pillow image, or pixels (H, W), (H, W, 1) or (H, W, 3) in uint8
_BATCH = 64


class Guess(TypedDict):
    name: str
    prob: float


class Prediction(TypedDict):
    """The most probable classes of one image; `file` is None for an image that was no file."""

    file: str | None
    top5: list[Guess]


class Classifier:
    """A trained model with its preprocessing and class names.

    Args:
        card: Of the model's checkpoint.
        model: The model, in eval mode.
        device: Where to compute.
    """

    def __init__(self, card: Card, model: Any, device: torch.device | str = "cpu") -> None:
        self.card = card
        self.model = model.to(device)
        self.device = device

    @property
    def classes(self) -> tuple[str, ...]:
        return self.card.classes

    def predict(self, images: Image | Iterable[Image]) -> list[Prediction]:
        """Name images.

        Args:
            images: One or more: paths, Pillow images, or arrays (H, W), (H, W, 1) or (H, W, 3) in uint8. They are
                resized as the training images were.

        Returns:
            For each image up to five classes, the most probable first.

        Raises:
            UserError: An image cannot be read.
        """
        images = listed(images)
        found = self.guess(map(self.read, images))
        files = [str(image) if isinstance(image, str | Path) else None for image in images]
        return [{"file": file, "top5": top5} for file, top5 in zip(files, found, strict=True)]

    def guess(self, pixels: Iterable[npt.NDArray[np.uint8]]) -> list[list[Guess]]:
        """Name images that `read` has read.

        Args:
            pixels: Each (H, W, C) as the model takes them.

        Returns:
            For each up to five classes, the most probable first.
        """
        found: list[list[Guess]] = []
        for probabilities in self._batches(pixels, lambda batch: self.model(batch).softmax(dim=1)):
            top = probabilities.topk(min(5, len(self.classes)))
            for values, classes in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                found.append(
                    [{"name": self.classes[label], "prob": value} for label, value in zip(classes, values, strict=True)]
                )
        return found

    def features(self, images: Image | Iterable[Image]) -> npt.NDArray[np.float32]:
        """Embed images: what the classifying layer reads.

        Args:
            images: As for `predict`.

        Returns:
            One row (D,) for each image.

        Raises:
            UserError: An image cannot be read.
        """
        return self.embed(map(self.read, listed(images)))

    def embed(self, pixels: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Embed images that `read` has read; arguments and result are those of `guess` and `features`."""

        def before_classifier(batch: Tensor) -> Tensor:
            return self.model.forward_head(self.model.forward_features(batch), pre_logits=True)

        rows = [batch.numpy() for batch in self._batches(pixels, before_classifier)]
        return np.concatenate(rows) if rows else np.empty((0, self.model.num_features), np.float32)

    @torch.inference_mode()
    def _batches(self, pixels: Iterable[npt.NDArray[np.uint8]], compute: Any) -> Iterator[Tensor]:
        rest = iter(pixels)
        while batch := list(islice(rest, _BATCH)):
            stacked = torch.from_numpy(np.stack(batch))
            normalised = self.card.preprocessing(stacked.permute(0, 3, 1, 2).to(self.device))
            yield compute(normalised).float().cpu()

    def read(self, image: Image) -> npt.NDArray[np.uint8]:
        """Return an image's pixels (H, W, C) as the model takes them."""
        seen = self.card.preprocessing
        size = seen.size if seen.crop is None else None
        if isinstance(image, str | Path):
            pixels = read_image(Path(image), size=size, channels=seen.channels)
        else:
            pixels = to_pixels(image, size=size, channels=seen.channels)
        if seen.crop is None:
            return pixels
        to_centre = eval_transform(seen.size, crop=seen.crop, interpolation=seen.interpolation)
        return to_centre(Pillow.fromarray(pixels)).permute(1, 2, 0).numpy()


def load(
    checkpoint: str | Path,
    *,
    device: torch.device | str = "cpu",
    img_size: int | tuple[int, int] | None = None,
    ema: bool | None = None,
) -> Classifier:
    """Load a model that `mpvg fit` trained.

    Args:
        checkpoint: Its .ckpt or .safetensors file; nothing else is needed.
        device: Where to compute.
        img_size: Side, or height and width, in pixels at which to see images; None for that of the training. The
            position table is resampled.
        ema: Whether to take the moving average of the weights; None where the training evaluated that.

    Returns:
        The model with its preprocessing and class names.

    Raises:
        UserError: The checkpoint cannot be used.
    """
    return classifier(*load_model(checkpoint, ema=ema), device=device, img_size=img_size)


def classifier(
    card: Card, model: Any, *, device: torch.device | str = "cpu", img_size: int | tuple[int, int] | None = None
) -> Classifier:
    """Return what predicts with a checkpoint's model; arguments are those of `load`."""
    size = card.preprocessing.size if img_size is None else to_2tuple(img_size)
    if size != card.preprocessing.size:
        card = resize(card, model, size)
    return Classifier(card, model, device)


def listed(images: Image | Iterable[Image]) -> list[Image]:
    """Return one or more images as a list."""
    one = isinstance(images, str | Path) or hasattr(images, "getpixel") or getattr(images, "ndim", 4) < 4
    return [images] if one else list(images)
