"""How near the operations of batched augmentation come to Pillow's, given the same arguments.

    python benchmarks/augmentation_agreement.py [--images 1000] [--out results/augmentation/agreement.csv]

Images are CIFAR-100's where MPVG_DATA names a folder that holds cifar100/cifar100.npz, else pieces of scikit-learn's
two photographs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import auto_augment
from torch import Tensor

from mpvg.data.augment.batch import operate
from mpvg.data.augment.crops import cut_and_resize
from mpvg.data.augment.kinds import Kind
from mpvg.data.augment.operations import Operations
from mpvg.files import as_csv, write_atomically

SIZE, MEAN = 32, (0.5071, 0.4867, 0.4408)
Pixels = npt.NDArray[np.uint8]

LEVELS: dict[Kind, tuple[str, float, float]] = {  # timm's function, and from where to where its arguments go
    Kind.AUTO_CONTRAST: ("auto_contrast", 0, 0),
    Kind.EQUALIZE: ("equalize", 0, 0),
    Kind.INVERT: ("invert", 0, 0),
    Kind.POSTERIZE: ("posterize", 1, 4),
    Kind.SOLARIZE: ("solarize", 0, 256),
    Kind.SOLARIZE_ADD: ("solarize_add", 0, 110),
    Kind.BRIGHTNESS: ("brightness", 0.1, 1.9),
    Kind.CONTRAST: ("contrast", 0.1, 1.9),
    Kind.COLOR: ("color", 0.1, 1.9),
    Kind.SHARPNESS: ("sharpness", 0.1, 1.9),
    Kind.ROTATE: ("rotate", -30, 30),
    Kind.SHEAR_X: ("shear_x", -0.3, 0.3),
    Kind.SHEAR_Y: ("shear_y", -0.3, 0.3),
    Kind.TRANSLATE_X: ("translate_x_rel", -0.45, 0.45),
    Kind.TRANSLATE_Y: ("translate_y_rel", -0.45, 0.45),
}
WHOLE = (Kind.POSTERIZE, Kind.SOLARIZE, Kind.SOLARIZE_ADD)
FILTERS = {False: Image.Resampling.BILINEAR, True: Image.Resampling.BICUBIC}


def real_images(count: int, size: tuple[int, int] = (SIZE, SIZE)) -> Pixels:
    """Return pieces of photographs, (count, H, W, 3): as many as there are, repeated if need be."""
    height, width = size
    pieces = []
    for photo in load_sample_images().images:
        down, right = photo.shape[0] // height, photo.shape[1] // width
        grid = photo[: down * height, : right * width].reshape(down, height, right, width, 3)
        pieces.append(grid.swapaxes(1, 2))
    found = np.concatenate([piece.reshape(-1, height, width, 3) for piece in pieces])
    return found[np.random.default_rng(0).permutation(len(found))[np.arange(count) % len(found)]]


def benchmark_images(count: int) -> tuple[Pixels, str]:
    """Return images of 32 x 32 pixels, and what they are."""
    path = Path(os.environ.get("MPVG_DATA", ""), "cifar100", "cifar100.npz")
    if "MPVG_DATA" in os.environ and path.is_file():
        return np.load(path)["train_images"][:count], "CIFAR-100"
    return real_images(count), "pieces of photographs"


def to_batch(images: Pixels) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def by_pillow(kind: Kind, images: Pixels, arguments: Sequence[float], *, bicubic: bool, fill: Sequence[int]) -> Pixels:
    """Return images (B, H, W, C) as timm's function for Pillow changes each of them."""
    name, low, high = LEVELS[kind]
    work, done = getattr(auto_augment, name), []
    for image, argument in zip(images, arguments, strict=True):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        given = [] if low == high else [int(argument) if kind in WHOLE else argument]
        colour = tuple(fill) if len(fill) > 1 else fill[0]
        done.append(np.asarray(work(picture, *given, fillcolor=colour, resample=FILTERS[bicubic])))
    return np.stack(done).reshape(images.shape)


def by_us(kind: Kind, images: Pixels, arguments: Sequence[float], *, bicubic: bool, fill: Sequence[int]) -> Pixels:
    """Return images (B, H, W, C) as `mpvg.data.augment` changes them, all at once."""
    shape = len(images), 1
    drawn = Operations(
        torch.full(shape, int(kind)), torch.tensor(arguments, dtype=torch.float32)[:, None], torch.full(shape, bicubic)
    )
    return operate(to_batch(images).clone(), drawn, torch.tensor(fill, dtype=torch.uint8)).permute(0, 2, 3, 1).numpy()


def arguments_of(kind: Kind, count: int, seed: int = 0) -> list[float]:
    """Return arguments from all of an operation's range."""
    _, low, high = LEVELS[kind]
    drawn = np.random.default_rng([seed, kind]).uniform(low, high + (kind in WHOLE), count)
    return [float(value) for value in (np.floor(drawn) if kind in WHOLE else drawn)]


def crops_by_pillow(images: Pixels, boxes: Sequence[Sequence[int]], *, bicubic: bool) -> Pixels:
    """Return windows (top, left, height, width) of images (B, H, W, C), resized to the images' size."""
    height, width, channels = images.shape[1:]
    done = []
    for image, (top, left, rows, columns) in zip(images, boxes, strict=True):
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        window = picture.crop((left, top, left + columns, top + rows))
        done.append(np.asarray(window.resize((width, height), FILTERS[bicubic])))
    return np.stack(done).reshape(images.shape)


def boxes_in(size: tuple[int, int], count: int) -> list[list[int]]:
    """Return windows of all sizes and places."""
    random = np.random.default_rng(0)
    sides = [(int(random.integers(1, size[0] + 1)), int(random.integers(1, size[1] + 1))) for _ in range(count)]
    return [[int(random.integers(size[0] - h + 1)), int(random.integers(size[1] - w + 1)), h, w] for h, w in sides]


def agreement(images: Pixels) -> list[dict[str, Any]]:
    """Return how far each operation is from Pillow's, given the same arguments, in levels of 255."""
    fill, found = [round(255 * part) for part in MEAN], []
    for kind in LEVELS:
        for bicubic in (False, True) if kind >= Kind.ROTATE else (False,):
            arguments = arguments_of(kind, len(images))
            ours, theirs = (by(kind, images, arguments, bicubic=bicubic, fill=fill) for by in (by_us, by_pillow))
            name = kind.name.lower().replace("_", " ")
            how = ("bicubic" if bicubic else "bilinear") if kind >= Kind.ROTATE else ""
            found.append({"operation": name, "interpolation": how} | distance(ours, theirs))
    boxes = boxes_in((SIZE, SIZE), len(images))
    for bicubic in (False, True):
        cut = cut_and_resize(to_batch(images), torch.tensor(boxes), torch.full((len(images),), bicubic))
        theirs = crops_by_pillow(images, boxes, bicubic=bicubic)
        how = "bicubic" if bicubic else "bilinear"
        crop = {"operation": "crop and resize", "interpolation": how}
        found.append(crop | distance(cut.permute(0, 2, 3, 1).numpy(), theirs))
    return found


def distance(ours: Pixels, theirs: Pixels) -> dict[str, Any]:
    apart = np.abs(ours.astype(int) - theirs)
    return {"mean": f"{apart.mean():.5f}", "largest": int(apart.max()), "images": len(ours)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("results/augmentation/agreement.csv"))
    arguments = parser.parse_args()
    images, name = benchmark_images(arguments.images)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"pixels": f"{SIZE}x{SIZE}", "data": name, "pillow": version("pillow")}
    write_atomically(arguments.out, as_csv([row | about for row in agreement(images)]))


if __name__ == "__main__":
    main()
