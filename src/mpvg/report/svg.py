"""Inline SVG whose text and colours follow the page's style sheet."""

import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

SERIES_COUNT = 8
WIDTH = 4.6  # inches: at 72 units an inch one unit is about one pixel on a phone 360 pixels wide

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
class Drawing:
    """A figure of a report; `key` names the series by their colours, and a `wide` one scrolls on a phone."""

    title: str
    text: str
    svg: Markup
    key: Sequence[str] = ()
    wide: bool = False


def style() -> AbstractContextManager[None]:
    """Return the context in which the figures of a report are drawn."""
    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "mpvg",
        "font.sans-serif": ["DejaVu Sans"],  # the page names its own fonts; every text would carry the whole list
        "text.parse_math": False,  # a dollar sign in a name is a dollar sign
        "font.size": 11.5,
        "axes.titlesize": 11.5,
        "axes.labelsize": 11.5,
        "figure.labelsize": 11.5,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "grid.linewidth": 0.7,
        "grid.color": GRID,
        "text.color": TEXT,
        "axes.labelcolor": TEXT,
        "axes.titlecolor": TEXT,
        "axes.edgecolor": TEXT,
        "xtick.color": TEXT,
        "ytick.color": TEXT,
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
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has the fonts, not matplotlib
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
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
