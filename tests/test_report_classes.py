"""Classes in the report: confusion matrices and accuracy of each class."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from report_helpers import (
    make_classes,
    make_summary,
    read_matrix,
    render,
    svg_cells,
    svg_texts,
)


@pytest.mark.parametrize("count", [2, 10, 15])
def test_confusion_matrix_has_true_classes_in_rows(tmp_path: Path, count: int) -> None:
    summary = make_summary("default", "pvg", **make_classes(count))
    page = render(summary, tmp_path)
    names = summary["data"]["classes"]
    for scheme in summary["schemes"]:
        cells = scheme["best"]["confusion"]
        svg = page.svg(f"Confusion matrix of {scheme['scheme']} ")
        assert read_matrix(svg, names) == {(names[true], names[predicted]): n for true, predicted, n in cells}
        # The colours agree with the counts: right ones on the diagonal, wrong ones one column further.
        middles = svg_cells(svg)
        assert len(middles["right"]) == count
        assert len(middles["wrong"]) == sum(true != predicted for true, predicted, _ in cells)
        xs, ys = (sorted({place[axis] for place in middles["right"]}) for axis in (0, 1))
        assert middles["right"] == set(zip(xs, ys, strict=True))
        assert middles["wrong"] == {(xs[predicted], ys[true]) for true, predicted, _ in cells if true != predicted}


def test_a_deeper_colour_is_a_larger_share_of_the_row(tmp_path: Path) -> None:
    summary = make_summary("default", test=(200, 10))
    summary["schemes"][0]["best"]["confusion"] = [[0, 0, 195], [0, 1, 5], [1, 0, 5], [1, 1, 5]]
    svg = render(summary, tmp_path).svg("Confusion matrix")
    found = re.findall(r'<path d="M ([.\d]+) ([.\d]+) [^"]*"[^>]*fill: var\(--wrong\); opacity: ([.\d]+)', svg)
    strength = {float(y): float(opacity) for _, y, opacity in found}
    assert len(strength) == 2
    assert strength[min(strength)] < strength[max(strength)]  # 5 of 200 in the upper row, 5 of 10 in the lower


def test_matrices_say_which_run_they_show(tmp_path: Path) -> None:
    page = render(make_summary("default", "pvg", **make_classes(10)), tmp_path)
    assert "the one with the highest validation accuracy at its end. The test split had no part" in page.words
    assert "Seed 2: 95.50 % of 200 test images, 90.50 % in validation." in page.words
    assert "Most often confused: class-2 → class-3 (2, 10.0 % of the class)" in page.words
    page = render(make_summary("default", seeds=1), tmp_path)
    assert "Each scheme has one run" in page.words
    assert "highest validation accuracy" not in page.words
    summary = make_summary("default")
    summary["schemes"][0]["best"]["confusion"] = [[0, 0, 180], [1, 1, 180]]
    assert "No image was misclassified." in render(summary, tmp_path).words


def test_every_class_has_its_dots_worst_class_first(tmp_path: Path) -> None:
    summary = make_summary("default", "gap", "pvg", **make_classes(10))
    summary["schemes"][1]["best"]["per_class"][4]["accuracy"] = 0.1
    svg = render(summary, tmp_path).svg("Dot plot of the accuracy of 10 classes")
    rows = sorted((y, text) for text, _, y, ends in svg_texts(svg) if ends)
    assert rows[0][1] == "class-4"
    assert sorted(text for _, text in rows) == summary["data"]["classes"]
    ticks = {int(text): x for text, x, _, _ in svg_texts(svg) if text.isdigit()}
    low, high = min(ticks), max(ticks)
    for at, scheme in enumerate(summary["schemes"], 1):
        dots = re.findall(rf'<use [^>]*x="([.\d]+)" y="([.\d]+)" style="fill: var\(--series-{at}\)', svg)
        found = {}
        for x, y in dots:
            name = min(rows, key=lambda row: abs(row[0] - 3 - float(y)))[1]  # texts are placed by their baseline
            found[name] = (low + (high - low) * (float(x) - ticks[low]) / (ticks[high] - ticks[low])) / 100
        expected = {one["name"]: one["accuracy"] for one in scheme["best"]["per_class"]}
        assert found == pytest.approx(expected, abs=1e-4)


def test_many_classes_are_told_by_tables(tmp_path: Path) -> None:
    summary = make_summary("default", "gap", "pvg", **make_classes(100))
    best = summary["schemes"][1]["best"]
    best["per_class"][40]["accuracy"] = 0.2
    best["confusion"] = [[40, 40, 4], [40, 7, 16], [41, 41, 17], [41, 8, 3]]
    page = render(summary, tmp_path)
    assert not any(label.startswith(("Confusion", "Dot plot of the accuracy")) for label in page.svgs)
    # 40: default takes 1 of 20 for the next class, gap as set above, pvg none.
    mean = "71.7 %"
    values = ["95.0 %", "20.0 %", "100.0 %"]
    head = ["default", "gap", "pvg", "Test images", "Training images"]
    lowest = page.tables["Lowest accuracy, by the mean over the schemes"]
    assert lowest[0] == ["Class", "Mean", *head]
    assert lowest[1] == ["40 class-40", mean, *values, "20", "240"]
    assert len(lowest) == 11
    widest = page.tables["Largest spread between schemes"]
    assert widest[1] == ["40 class-40", "80.0 points", *values, "20", "240"]
    assert len(widest) == 11
    assert "Of 100 classes 10 are shown in each table; all are under “Every class”" in page.words
    assert page.tables["gap"] == [
        ["True → predicted", "Count", "Share"],
        ["class-40 → class-7", "16", "80.0 %"],
        ["class-41 → class-8", "3", "15.0 %"],
    ]
    assert len(page.tables["default"]) == 11
    every = page.tables["Every class"]
    assert every[0] == ["Class", *head]
    assert [row[0] for row in every[1:]] == [f"{at} class-{at}" for at in range(100)]
    assert every[41] == ["40 class-40", *values, "20", "240"]


def test_classes_beyond_a_thousand_are_left_to_the_summary(tmp_path: Path) -> None:
    page = render(make_summary("default", **make_classes(1001)), tmp_path)
    assert page.tables["Lowest accuracy"][0] == ["Class", "default", "Test images", "Training images"]
    assert not {"Largest spread between schemes", "Every class"} & set(page.tables)
    assert "Of 1,001 classes 10 are shown; all are in the summary.json" in page.words


def test_six_schemes_of_a_hundred_classes_stay_small(tmp_path: Path) -> None:
    summary = make_summary("default", "gap", "lape", "pvg", **make_classes(100))
    for name in ("mpvg", "sixth"):
        summary["schemes"].append({**copy.deepcopy(summary["schemes"][3]), "scheme": name})
    assert len(render(summary, tmp_path).html.encode()) < 1_500_000


@pytest.mark.parametrize(("count", "matrix", "numbers", "dots"), [(20, True, False, True), (30, True, False, False)])
def test_what_is_drawn_follows_the_number_of_classes(
    tmp_path: Path, count: int, matrix: bool, numbers: bool, dots: bool
) -> None:
    summary = make_summary("default", "pvg", **make_classes(count))
    page = render(summary, tmp_path)
    svg = page.svg("Confusion matrix of pvg ")
    assert bool(read_matrix(svg, summary["data"]["classes"])) == numbers
    assert any(label.startswith("Dot plot of the accuracy") for label in page.svgs) == dots
    assert ("Lowest accuracy, by the mean over the schemes" in page.tables) == (not dots)
    assert "Most frequent confusions" not in page.text("h3")
    # A matrix of many classes scrolls on a phone, within a region that the keyboard reaches.
    regions = [attrs for _, attrs in page.tags if attrs.get("role") == "region" and attrs.get("aria-label") == "pvg"]
    assert [attrs["tabindex"] for attrs in regions] == ["0"]


def test_long_names_stay_distinct(tmp_path: Path) -> None:
    names = ["Bengal", "Abyssinian_long_haired_cat", "Abyssinian_short_haired_cat", "Egyptian_Mau_of_the_Nile"]
    summary = make_summary("default", "pvg", classes=names, train=(40, 90, 60, 80), test=(20, 20, 20, 20))
    page = render(summary, tmp_path)
    shown = ["Bengal", "1 Abyssin…ed_cat", "2 Abyssin…ed_cat", "Egyptian…he_Nile"]
    read_matrix(page.svg("Confusion matrix of pvg "), shown)
    for start in ("Dot plot of the accuracy", "Bars"):  # in another order, but under the same names
        assert {text for text, *_, ends in svg_texts(page.svg(start)) if ends} == set(shown)
    assert [row[0] for row in page.tables["Every class"][1:]] == [f"{at} {name}" for at, name in enumerate(names)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [4, 40])
def test_class_names_are_text(tmp_path: Path, count: int) -> None:
    names = ["<b>&$y$", "猫", "bell\a", "{{ 7 * 7 }}"]
    classes = names + [f"class-{at}" for at in range(4, count)]
    summary = make_summary("default", classes=classes, train=[30] + [90] * (count - 1), test=[9] * count)
    summary["schemes"][0]["best"]["confusion"] = [[at, at, 9] for at in range(1, count)] + [[0, 1, 9]]
    page = render(summary, tmp_path)
    assert "b" not in {tag for tag, _ in page.tags}
    assert [row[0] for row in page.tables["Every class"][1:5]] == [f"{at} {name}" for at, name in enumerate(names)]
    if count == 40:
        assert page.tables["default"][1] == ["<b>&$y$ → 猫", "9", "100.0 %"]
    else:
        assert "Most often confused: <b>&$y$ → 猫 (9, 100.0 % of the class)" in page.words
        shown = ["&lt;b&gt;&amp;$y$", "猫", "bell\N{REPLACEMENT CHARACTER}", "{{ 7 * 7 }}"]
        assert read_matrix(page.svg("Confusion"), shown)[shown[0], shown[1]] == 9


def test_a_class_without_test_image_has_no_accuracy(tmp_path: Path) -> None:
    classes: dict[str, Any] = {**make_classes(10), "test": [20] * 9 + [0]}
    page = render(make_summary("default", "pvg", **classes), tmp_path)
    svg = page.svg("Dot plot of the accuracy")
    texts = svg_texts(svg)
    rows = {text: y for text, _, y, ends in texts if ends}
    (note,) = [y for text, _, y, _ in texts if text == "no test image"]
    assert rows["class-9"] == max(rows.values()) == pytest.approx(note, abs=3)
    assert len(re.findall(r'<use [^>]*style="fill: var\(--series-2\)', svg)) == 9
    assert page.tables["Every class"][10][1:] == ["no test image", "no test image", "0", "209"]
    assert "without an accuracy: class-9." in page.words

    classes = {**make_classes(100), "test": [20] * 99 + [0]}
    page = render(make_summary("default", "pvg", **classes), tmp_path)
    lowest = page.tables["Lowest accuracy, by the mean over the schemes"]
    assert len(lowest) == 11
    assert not any("class-99" in row[0] for row in lowest)
