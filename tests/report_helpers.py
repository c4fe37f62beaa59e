"""Summaries to report on, and reading a page as a person would."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mpvg.report import write_compare_report

VERDICTS = {"gap": "no difference shown", "lape": "higher than default", "pvg": "lower than default"}


def make_best(index: int, seeds: int, classes: Sequence[str], test: Sequence[int]) -> dict[str, Any]:
    """A run that takes up to two images of every class for the next class."""
    wrong = [min(images, (at + index) % 3) for at, images in enumerate(test)]
    right = [images - errors for images, errors in zip(test, wrong, strict=True)]
    cells = [[at, at, count] for at, count in enumerate(right)]
    cells += [[at, (at + 1) % len(test), count] for at, count in enumerate(wrong)]
    return {
        "seed": seeds - 1,
        "val_accuracy": 0.905,
        "accuracy": sum(right) / sum(test),
        "per_class": [
            {"name": name, "samples": images, "accuracy": count / images if images else None}
            for name, images, count in zip(classes, test, right, strict=True)
        ],
        "confusion": sorted(cell for cell in cells if cell[2]),
    }


def make_scheme(
    name: str, seeds: int = 3, index: int = 0, classes: Sequence[str] = ("0", "1"), test: Sequence[int] = (180, 180)
) -> dict[str, Any]:
    interval = (0.91, 0.93) if seeds > 1 else (None, None)
    difference = None
    if name != "default":
        low, high = (-0.01, 0.0123) if seeds > 1 else (None, None)
        verdict = VERDICTS[name] if seeds > 1 else "one seed: no interval"
        difference = {"mean": 0.0046, "low": low, "high": high, "verdict": verdict}
    delivers = name in ("lape", "pvg")
    runs = [
        {
            "seed": seed,
            "accuracy": 0.92 + seed / 100,
            "loss": 0.2,
            "seconds": 33.1,
            "curve": {
                "step": [0, 50, 100],
                "train_loss": [None if seed == 1 else 2.3, 0.4, 0.1],
                "val_accuracy": [0.1, 0.8, 0.9],
            },
            "correlation": {"block": [1, 2], "value": [-0.1, 0.05]} if delivers else None,
        }
        for seed in range(seeds)
    ]
    return {
        "scheme": name,
        "description": f"What {name} does.",
        "shuffled": None,
        "parameters": 54321,
        "mean": 0.9222,
        "low": interval[0],
        "high": interval[1],
        "difference": difference,
        "rise": -0.00001,
        "converged": name != "gap",
        "runs": runs,
        "lr": 0.001,
        "balanced_accuracy": 0.8123,
        "best": make_best(index, seeds, classes, test),
    }


def make_summary(
    *names: str,
    seeds: int = 3,
    classes: Sequence[str] = ("0", "1"),
    train: Sequence[int] = (575, 575),
    test: Sequence[int] = (180, 180),
) -> dict[str, Any]:
    return {
        "command": "mpvg compare --data digits",
        "data": {
            "name": "digits",
            "train": sum(train),
            "val": 287,
            "test": sum(test),
            "unit": "images",
            "image_size": [8, 8],
            "channels": 1,
            "classes": list(classes),
            "note": "Digits that come with scikit-learn.",
            "class_counts": {"train": list(train), "test": list(test)},
            "skipped": [],
        },
        "model": "mpvg_vit_nano",
        "settings": {"steps": 100, "amp": False, "lr": [0.001]},
        "lr_trials": None,
        "versions": {"mpvg": "0.1.0"},
        "hardware": "2 cores",
        "seconds": 210.3,
        "schemes": [make_scheme(name, seeds, index, classes, test) for index, name in enumerate(names)],
        "notes": ["Intervals are not adjusted for several comparisons."],
    }


def make_classes(count: int, images: int = 20) -> dict[str, Any]:
    """Arguments of `make_summary` for so many classes; their training images all differ a little."""
    train = [10 * images + at for at in range(count)]
    return {"classes": [f"class-{at}" for at in range(count)], "train": train, "test": [images] * count}


def make_trials(rates: Sequence[float], **chosen: float) -> dict[str, Any]:
    """Trials of each scheme, the chosen rate the best; accuracies and losses differ from cell to cell."""
    by_scheme = []
    for row, (scheme, best) in enumerate(chosen.items()):
        tried = [
            {"lr": lr, "val_accuracy": 0.9 - 0.01 * abs(at - rates.index(best)) - 0.001 * row, "val_loss": 0.5 + at / 8}
            for at, lr in enumerate(rates)
        ]
        edge = best in (rates[0], rates[-1])
        by_scheme.append({"scheme": scheme, "chosen": best, "at_edge": edge, "tried": tried})
    return {"seed": 0, "by_scheme": by_scheme}


class Page(HTMLParser):
    """Collects what the tests ask of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}  # rows of cells, by the heading before the table
        self._heading = ""
        self._within: list[str] = []
        self.svgs: dict[str, str] = {}
        for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
            label = re.search(r'aria-label="([^"]*)"', svg)
            assert label is not None
            self.svgs[label.group(1)] = svg
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("h2", "h3", "summary", "th", "td"):
            self._within = []
        if tag == "tr":
            self.tables.setdefault(self._heading, []).append([])

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h2", "h3", "summary"):
            self._heading = " ".join(self._within)
        elif tag in ("th", "td"):
            self.tables[self._heading][-1].append(" ".join(self._within))

    def handle_data(self, data: str) -> None:
        if self.tags and data.strip():
            self.texts.append((self.tags[-1][0], " ".join(data.split())))
            self._within.append(" ".join(data.split()))

    @property
    def words(self) -> str:
        return " ".join(text for _, text in self.texts)

    def text(self, tag: str) -> list[str]:
        return [text for one, text in self.texts if one == tag]

    def svg(self, start: str) -> str:
        (found,) = [svg for label, svg in self.svgs.items() if label.startswith(start)]
        return found


def svg_texts(svg: str) -> list[tuple[str, float, float, bool]]:
    """Text, x, y and whether it ends there, of every text that is not rotated about its middle."""
    found = re.findall(r'<text style="([^"]*)" x="([-.\d]+)" y="([-.\d]+)"[^>]*>([^<]*)</text>', svg)
    return [(text, float(x), float(y), "text-anchor: end" in style) for style, x, y, text in found]


def svg_cells(svg: str) -> dict[str, set[tuple[float, float]]]:
    """Middles of the filled squares of a confusion matrix, by their colour."""
    cells: dict[str, set[tuple[float, float]]] = {}
    for path, colour in re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--(right|wrong)\)', svg):
        for square in path.split("z")[:-1]:
            numbers = list(map(float, re.findall(r"[-.\d]+", square)))
            xs, ys = numbers[0::2], numbers[1::2]
            cells.setdefault(colour, set()).add(((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2))
    return cells


def read_matrix(svg: str, shown: Sequence[str]) -> dict[tuple[str, str], int]:
    """Read a confusion matrix with counts as a reader does: the names left of a number and below it."""
    texts = svg_texts(svg)
    left = min(x for text, x, _, _ in texts if text in shown)
    rows = {y: text for text, x, y, _ in texts if text in shown and x == left}
    columns = {x: text for text, x, _, _ in texts if text in shown and x != left}
    assert sorted(rows.values()) == sorted(columns.values()) == sorted(shown)
    assert [rows[y] for y in sorted(rows)] == [columns[x] for x in sorted(columns)] == list(shown)

    def nearest(places: dict[float, str], at: float) -> str:
        return places[min(places, key=lambda place: abs(place - at))]

    counts = [one for one in texts if one[0].isdigit() and one[0] not in shown]
    return {(nearest(rows, y), nearest(columns, x)): int(text) for text, x, y, _ in counts}


def render(summary: dict[str, Any], folder: Path) -> Page:
    path = folder / "report.html"
    write_compare_report(summary, path)
    return Page(path.read_text(encoding="utf-8"))
