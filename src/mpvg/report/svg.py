"""Figures as inline SVG whose text and colours follow the page's style sheet, and as files in colours for print."""

import base64
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

SERIES_COUNT = 8
WIDTH = 4.6  # inches: at 72 units an inch one unit is about one pixel on a phone 360 pixels wide
WIDE = 11.0  # of a figure as wide as the page, for which text of 9 points is large enough
DPI = 150

# Colours that occur nowhere else, swapped in the finished SVG for what the style sheet decides.
TEXT = "#010203"
GRID = "#040506"
RIGHT = "#070809"
WRONG = "#0a0908"
SERIES = tuple(f"#0a0b{index:02x}" for index in range(1, SERIES_COUNT + 1))
_SWAPS = {
    TEXT: "currentColor",
    GRID: "var(--line)",
    RIGHT: "var(--right)",
    WRONG: "var(--wrong)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(SERIES, 1)},
}


@dataclass(frozen=True)
class Palette:
    """Colours of a figure.

    Args:
        text: Of text and axes.
        grid: Of the lines behind.
        series: Of what is told apart by colour.
        fonts: Families, the first that exists is taken.
    """

    text: str
    grid: str
    series: tuple[str, ...]
    fonts: tuple[str, ...]


# The page names its own fonts; every text would carry the whole list.
PAGE = Palette(TEXT, GRID, SERIES, ("DejaVu Sans",))
# What the style sheet says for a light page.
PRINT = Palette(
    "#1d2228",
    "#dfe2e5",
    ("#1d2228", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#b3a500"),
    ("DejaVu Sans", "Verdana", "Arial"),
)


@dataclass(frozen=True)
class Drawing:
    """A figure of a report; `key` names the series by their colours, and a `wide` one scrolls on a phone."""

    title: str
    text: str
    svg: Markup
    key: Sequence[str] = ()
    wide: bool = False


def style(palette: Palette = PAGE, *, size: float = 11.5) -> AbstractContextManager[None]:
    """Return the context in which the figures of a report are drawn.

    Args:
        palette: Their colours.
        size: Of their text, in points.
    """
    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "mpvg",
        "font.sans-serif": list(palette.fonts),
        "text.parse_math": False,  # a dollar sign in a name is a dollar sign
        "font.size": size,
        "axes.titlesize": size,
        "axes.labelsize": size,
        "figure.labelsize": size,
        "xtick.labelsize": size - 0.5,
        "ytick.labelsize": size - 0.5,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "grid.linewidth": 0.7,
        "grid.color": palette.grid,
        "text.color": palette.text,
        "axes.labelcolor": palette.text,
        "axes.titlecolor": palette.text,
        "axes.edgecolor": palette.text,
        "xtick.color": palette.text,
        "ytick.color": palette.text,
        "axes.titlepad": 4,
        "lines.solid_capstyle": "butt",
    }
    context: Callable[[Any], AbstractContextManager[None]] = matplotlib.rc_context
    return context(settings)


def inline_svg(figure: Figure, *, prefix: str, label: str) -> Markup:
    """Render a figure and rewrite the SVG so that it can sit in a page beside others.

    Args:
        figure: The figure.
        prefix: Start of every id in the SVG, unique within the page.
        label: Text alternative of the figure.

    Returns:
        The SVG element, safe to put into HTML.
    """
    root = ElementTree.fromstring(_compact(_saved(figure, "svg", transparent=True)))
    for parent in list(root.iter()):
        for child in list(parent):
            # The style element would apply to the whole page; the page has the same rule for figures only.
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    for element in root.iter():
        # Within HTML neither SVG elements nor href need a namespace.
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                if value in used:
                    element.set("id", f"{prefix}-{value}")
            elif name == "href":
                element.set("href", value.replace("#", f"#{prefix}-", 1))
            else:
                value = value.replace("url(#", f"url(#{prefix}-")
                for sentinel, colour in _SWAPS.items():
                    value = value.replace(sentinel, colour)
                element.set(name, value)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def print_files(figure: Figure) -> dict[str, bytes]:
    """Render a figure drawn in the colours for print, on white, within its style.

    Args:
        figure: The figure.

    Returns:
        The content of a file for each suffix, ".png" and ".svg".
    """
    return {
        ".png": _saved(figure, "png", transparent=False),
        ".svg": _compact(_saved(figure, "svg", transparent=False)),
    }


def _saved(figure: Figure, kind: str, *, transparent: bool) -> bytes:
    buffer = BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the fonts, not matplotlib
        figure.savefig(buffer, format=kind, dpi=DPI, transparent=transparent, metadata=metadata)
    return buffer.getvalue()


def _compact(svg: bytes) -> bytes:
    """Store images of few colours by their palette, which takes a quarter of the bytes."""
    return re.sub(rb"(?<=data:image/png;base64,)[^\"]+", lambda match: _indexed(match[0]), svg)


def _indexed(encoded: bytes) -> bytes:
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(encoded))).convert("RGBA"))
    colours, index = np.unique(pixels.reshape(-1, 4).view(np.uint32), return_inverse=True)
    if len(colours) > 256 or pixels[..., 3].min() < 255:
        return encoded.strip()
    image = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), "P")
    image.putpalette(colours.view(np.uint8).reshape(-1, 4)[:, :3].tobytes())
    buffer = BytesIO()
    image.save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue())
