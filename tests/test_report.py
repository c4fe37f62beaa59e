"""The comparison report: what it claims, what it shows, and that one file is all it takes."""

import copy
import re
from pathlib import Path

import pytest

from mpvg.report import write_compare_report
from report_helpers import (
    make_summary,
    render,
)


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
    assert [label.split(" of ")[0] for label in page.svgs] == ["Dot plot", "Dot plot", "Confusion matrix"]
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
