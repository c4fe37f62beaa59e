"""The comparison report: what it claims, what it shows, and that one file is all it takes."""

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from mpvg.report import write_compare_report

VERDICTS = {"gap": "no difference shown", "lape": "higher than default", "pvg": "lower than default"}


def make_scheme(name: str, seeds: int = 3) -> dict[str, Any]:
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
        "parameters": 54321,
        "mean": 0.9222,
        "low": interval[0],
        "high": interval[1],
        "difference": difference,
        "rise": -0.00001,
        "converged": name != "gap",
        "runs": runs,
    }


def make_summary(*names: str, seeds: int = 3) -> dict[str, Any]:
    return {
        "command": "mpvg compare --data digits",
        "data": {
            "name": "digits",
            "train": 1150,
            "val": 287,
            "test": 360,
            "image_size": [8, 8],
            "channels": 1,
            "classes": ["0", "1"],
            "note": "Digits that come with scikit-learn.",
        },
        "model": "mpvg_vit_nano",
        "settings": {"steps": 100, "amp": False},
        "versions": {"mpvg": "0.1.0"},
        "hardware": "2 cores",
        "seconds": 210.3,
        "schemes": [make_scheme(name, seeds) for name in names],
        "notes": ["Intervals are not adjusted for several comparisons."],
    }


class Page(HTMLParser):
    """Collects what the tests ask of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.svgs: dict[str, str] = {}
        for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
            label = re.search(r'aria-label="([^"]*)"', svg)
            assert label is not None
            self.svgs[label.group(1)] = svg
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and data.strip():
            self.texts.append((self.tags[-1][0], " ".join(data.split())))

    def text(self, tag: str) -> list[str]:
        return [text for one, text in self.texts if one == tag]

    def svg(self, start: str) -> str:
        (found,) = [svg for label, svg in self.svgs.items() if label.startswith(start)]
        return found


def render(summary: dict[str, Any], folder: Path) -> Page:
    path = folder / "report.html"
    write_compare_report(summary, path)
    return Page(path.read_text(encoding="utf-8"))


def test_one_file_is_all_it_takes(tmp_path: Path) -> None:
    page = render(make_summary("default", "gap", "lape", "pvg"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    links = [attrs["href"] or "" for _, attrs in page.tags if "href" in attrs]
    links += re.findall(r"url\(([^)]*)\)", page.html)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert links
    assert all(link.startswith("#") for link in links)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} == set(ids)
    assert "@import" not in page.html


def test_same_summary_gives_same_bytes(tmp_path: Path) -> None:
    summary = make_summary("default", "pvg")
    before = copy.deepcopy(summary)
    assert render(summary, tmp_path).html == render(summary, tmp_path).html
    assert summary == before


def test_headline_claims_what_the_verdicts_say(tmp_path: Path) -> None:
    page = render(make_summary("default", "gap", "lape", "pvg"), tmp_path)
    assert page.text("h1") == [
        "mpvg_vit_nano on digits: lape scored higher than default; pvg scored lower than default; "
        "no difference shown between default and gap"
    ]


def test_one_seed_claims_nothing(tmp_path: Path) -> None:
    page = render(make_summary("default", "lape", seeds=1), tmp_path)
    (headline,) = page.text("h1")
    assert headline.endswith("2 position schemes with one seed each, too few to tell them apart")
    assert "scored higher" not in page.html
    assert not any(label.startswith("Dot plot of the difference") for label in page.svgs)


def test_single_scheme_without_position(tmp_path: Path) -> None:
    summary = make_summary("default", seeds=1)
    summary["schemes"][0]["runs"][0]["curve"] = {"step": [], "train_loss": [], "val_accuracy": []}
    summary["notes"] = []
    page = render(summary, tmp_path)
    assert len(page.svgs) == 1
    assert "No learning curve was recorded." in page.html
    assert "default delivers no position to the blocks" in page.html
    assert "Difference to" not in page.html
    assert "Notes" not in page.text("h2")


def test_numbers_carry_their_units_and_signs(tmp_path: Path) -> None:
    page = render(make_summary("default", "gap"), tmp_path)
    assert "92.22\N{NO-BREAK SPACE}%" in page.html
    assert "+0.46" in page.html
    assert "\N{MINUS SIGN}1.00 to +1.23" in page.html
    assert page.html.count('<span class="value">0.00</span>') == 2  # the rise of -0.001 points has no sign left
    assert "had not settled when training stopped for gap;" in page.html


def test_every_seed_has_its_dot(tmp_path: Path) -> None:
    page = render(make_summary("default", "lape", "pvg"), tmp_path)
    for start, series in (("Dot plot of test accuracy", (1, 2, 3)), ("Dot plot of the difference", (2, 3))):
        dots = re.findall(r'<use [^>]*style="fill: var\(--series-(\d)\)', page.svg(start))
        assert dots == [str(index) for index in series for _ in range(3)]


def test_only_delivering_schemes_have_a_correlation(tmp_path: Path) -> None:
    page = render(make_summary("default", "gap", "lape", "pvg"), tmp_path)
    drawn = re.findall(r"<text[^>]*>(\w+)</text>", page.svg("Correlation"))
    assert {"lape", "pvg"} <= set(drawn)
    assert not {"default", "gap"} & set(drawn)
    assert "default and gap deliver no position to the blocks and have no line here." in page.html


def test_colours_follow_the_page(tmp_path: Path) -> None:
    page = render(make_summary("default", "pvg"), tmp_path)
    for svg in page.svgs.values():
        assert "currentColor" in svg
        assert not re.search(r"#[0-9a-f]{6}\b", svg)


def test_text_is_escaped(tmp_path: Path) -> None:
    summary = make_summary("default", "pvg")
    nasty = '<b onclick="x">&$y$'
    summary["schemes"][1]["scheme"] = nasty
    summary["command"] = summary["notes"][0] = summary["settings"]["steps"] = nasty
    page = render(summary, tmp_path)
    assert "b" not in {tag for tag, _ in page.tags}
    assert not any("onclick" in attrs for _, attrs in page.tags)
    assert nasty in page.text("dd")
    assert nasty in page.text("li")


def test_a_failure_leaves_the_old_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="no scheme"):
        write_compare_report({**make_summary("default"), "schemes": []}, path)
    assert path.read_text() == "old"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_compare_report(make_summary("default"), tmp_path / "folder")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "report.html"]
