"""Pictures of what was found: boxes and masks with names and scores, class maps with a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import draw_segmentation_masks

from mpvg.dense.predictor import ClassMap, Detections

Colour = tuple[int, int, int]
_TURN = 0.61803398875  # of the circle of hues between two classes, so that neighbours differ
_OF_MASK, _OF_MAP = 0.45, 0.6  # opacity
_MOST_NAMES = 12  # in a legend


def colour_of(label: int) -> Colour:
    """Return the colour of a class by its number; the same everywhere.

    Args:
        label: From 0.
    """
    value, saturation = ((1.0, 0.75), (0.75, 0.9), (0.95, 0.45))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(label * _TURN % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(pixels: npt.NDArray[np.uint8], found: Detections, *, min_score: float = 0.5) -> Image.Image:
    """Draw boxes, masks, names and scores into an image.

    Args:
        pixels: The image (H, W, 3).
        found: Its objects.
        min_score: Of those that are drawn.

    Returns:
        The picture, of the image's size.
    """
    chosen = np.flatnonzero(found.scores >= min_score)[::-1]  # the surest on top
    colours = [colour_of(int(found.labels[i]) - 1) for i in chosen]
    canvas = torch.from_numpy(pixels).permute(2, 0, 1)
    for i, colour in zip(chosen, colours, strict=True):  # one by one: of several it leaves out where they overlap
        canvas = draw_segmentation_masks(
            canvas, torch.from_numpy(found.masks[i]).bool(), alpha=_OF_MASK, colors=[colour]
        )
    picture = Image.fromarray(canvas.permute(1, 2, 0).contiguous().numpy())
    draw, size = ImageDraw.Draw(picture), _text_size(picture)
    for i, colour in zip(chosen, colours, strict=True):
        left, top, right, bottom = found.boxes[i].tolist()
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=max(1, size // 8))
        _label(draw, (left, top), f"{found.names[i]} {100 * found.scores[i]:.0f}", colour, size=size)
    return picture


def draw_class_map(
    pixels: npt.NDArray[np.uint8], found: ClassMap, classes: Sequence[str], *, hidden: Sequence[int] = ()
) -> Image.Image:
    """Colour an image by the classes of its pixels, with a legend of the largest ones below.

    Args:
        pixels: The image (H, W, 3).
        found: The classes.
        classes: Their names.
        hidden: Labels that are left uncoloured, such as a background.

    Returns:
        The picture, as wide as the image.
    """
    labels, counts = np.unique(found.labels, return_counts=True)
    shown = [int(label) for label in labels[np.argsort(-counts, kind="stable")] if label not in hidden]
    canvas = torch.from_numpy(pixels).permute(2, 0, 1)
    if shown:
        masks = torch.from_numpy(np.stack([found.labels == label for label in shown]))
        canvas = draw_segmentation_masks(canvas, masks, alpha=_OF_MAP, colors=[colour_of(label) for label in shown])
    picture = Image.fromarray(canvas.permute(1, 2, 0).contiguous().numpy())
    total = found.labels.size
    parts = {label: counts[labels == label][0] / total for label in shown[:_MOST_NAMES]}
    return _with_legend(picture, {f"{classes[label]} {100 * parts[label]:.0f} %": colour_of(label) for label in parts})


def _with_legend(picture: Image.Image, names: dict[str, Colour]) -> Image.Image:
    size = _text_size(picture)
    font, step, x, y = ImageFont.load_default(size), round(1.6 * size), size // 2, picture.height + size // 3
    places = []
    for name, colour in names.items():
        width = step + round(font.getlength(name)) + size
        if x + width > picture.width and x > size // 2:
            x, y = size // 2, y + step
        places.append((x, y, name, colour))
        x += width
    whole = Image.new("RGB", (picture.width, y + step if names else picture.height), "white")
    whole.paste(picture)
    draw = ImageDraw.Draw(whole)
    for x, y, name, colour in places:
        draw.rectangle((x, y, x + size, y + size), fill=colour)
        draw.text((x + step, y + size / 2), name, fill="black", font=font, anchor="lm")
    return whole


def _label(draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, colour: Colour, *, size: int) -> None:
    """Write a text on a bar of a colour, above a corner or where there is no room below it."""
    font = ImageFont.load_default(size)
    width, height = font.getlength(text) + size / 2, 1.3 * size
    whole_width = draw.im.size[0]
    left = max(0.0, min(corner[0], whole_width - width))
    top = corner[1] - height if corner[1] >= height else corner[1]
    draw.rectangle((left, top, left + width, top + height), fill=colour)
    red, green, blue = colour
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
    draw.text((left + size / 4, top + height / 2), text, fill=ink, font=font, anchor="lm")


def _text_size(picture: Image.Image) -> int:
    return max(9, round(min(picture.size) / 40))
