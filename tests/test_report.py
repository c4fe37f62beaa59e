"""The comparison report: what it claims, what it shows, and that one file is all it takes."""

import copy
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

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
            {"name": name, "images": images, "accuracy": count / images if images else None}
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


def test_one_learning_rate_needs_no_words(tmp_path: Path) -> None:
    page = render(make_summary("default", "pvg"), tmp_path)
    assert "Learning rates" not in page.text("h2")
    assert "Learning rate" not in page.tables["Results"][0]


def test_the_chosen_learning_rate_is_marked(tmp_path: Path) -> None:
    summary = make_summary("default", "pvg")
    summary["lr_trials"] = make_trials([1e-4, 3e-4, 1e-3, 3e-3], default=1e-3, pvg=3e-4)
    summary["lr_trials"]["by_scheme"][0]["tried"][3].update(val_accuracy=None, val_loss=None)
    for scheme, lr in zip(summary["schemes"], (1e-3, 3e-4), strict=True):
        scheme["lr"] = lr
    page = render(summary, tmp_path)
    head, default, pvg = page.tables["Learning rates"]
    assert head == ["Scheme", "lr 0.0001", "lr 0.0003", "lr 0.001", "lr 0.003"]
    assert default == [
        "default",
        "88.00 % loss 0.5000",
        "89.00 % loss 0.6250",
        "90.00 % ✓ chosen loss 0.7500",
        "diverged no finite loss",
    ]
    assert [("chosen" in cell) for cell in pvg] == [False, False, True, False, False]
    marked = [attrs["data-label"] for _, attrs in page.tags if attrs.get("class") == "chosen"]
    assert marked == ["lr 0.001", "lr 0.0003"]
    head, *rows = page.tables["Results"]
    assert [row[head.index("Learning rate")] for row in rows] == ["0.001", "0.0003"]
    assert "tried with seed 0" in page.words
    assert "try larger" not in page.html
    assert "try smaller" not in page.html


def test_a_learning_rate_at_the_edge_is_remarked(tmp_path: Path) -> None:
    summary = make_summary("default", "gap", "lape", "pvg")
    summary["lr_trials"] = make_trials([1e-4, 1e-3, 1e-2], default=1e-2, gap=1e-4, lape=1e-3, pvg=1e-2)
    page = render(summary, tmp_path)
    assert "For default and pvg the best was the largest tried (0.01): try larger ones too." in page.text("p")
    assert "For gap the best was the smallest tried (0.0001): try smaller ones too." in page.text("p")
    remarks = [attrs for tag, attrs in page.tags if tag == "p" and attrs.get("class") == "remark"]
    assert len(remarks) == 3  # these two, and that gap had not settled


@pytest.mark.parametrize("count", [0, 1, 23])
def test_skipped_images_are_named_in_the_open(tmp_path: Path, count: int) -> None:
    summary = make_summary("default", "pvg")
    summary["data"]["skipped"] = [f"cats/<i>{at}.jpg: truncated" for at in range(count)]
    page = render(summary, tmp_path)
    in_the_open = re.sub(r"<details.*?</details>", "", page.html, flags=re.DOTALL)
    assert in_the_open.count("jpg: truncated") == min(count, 20)
    named = [text for text in page.text("li") if "truncated" in text]
    assert named == summary["data"]["skipped"][:20]
    assert ("left out; see Data below" in page.words) == (count > 0)
    assert ("Data" in page.text("h2")) == (count > 0)
    if count == 1:
        assert "1 image could not be read and was left out:" in page.words
    if count == 23:
        assert "23 images could not be read and were left out; the first 20 are:" in page.words


def test_imbalance_shows_balanced_accuracy_and_counts(tmp_path: Path) -> None:
    classes = ["rare", "common", "middle"]
    page = render(make_summary("default", "pvg", classes=classes, train=(10, 400, 90), test=(4, 50, 31)), tmp_path)
    head, *rows = page.tables["Results"]
    assert [row[head.index("Balanced accuracy")] for row in rows] == ["81.23 %"] * 2
    assert (
        "Training images per class: 10 to 400 (ratio 40.0); test images per class: 4 to 50 (ratio 12.5)" in page.words
    )
    assert "in the smallest class one image makes 25.0 percentage points" in page.words
    assert (
        "Most often confused: middle → rare (2, 6.5 % of the class); common → middle (1, 2.0 % of the class)."
        in page.words
    )
    svg = page.svg("Bars of the training images of 3 classes. Most: common (400); fewest: rare (10).")
    rows_of = sorted((y, text) for text, _, y, ends in svg_texts(svg) if ends)
    assert [text for _, text in rows_of] == ["common", "middle", "rare"]
    numbers = sorted((y, text.strip()) for text, _, y, _ in svg_texts(svg) if "/" in text)
    assert [text for _, text in numbers] == ["400 / 50", "90 / 31", "10 / 4"]
    bars = [float(x1) - float(x0) for x0, x1 in re.findall(r'd="M ([.\d]+) \S+ +L ([.\d]+) [^"]*"[^>]*--right', svg)]
    assert [width / bars[0] for width in bars] == pytest.approx([1, 90 / 400, 10 / 400])


def test_balanced_classes_need_no_drawing(tmp_path: Path) -> None:
    # 1.5 times as many training images are no imbalance yet, whatever the test images.
    page = render(make_summary("default", "pvg", train=(100, 150), test=(9, 90)), tmp_path)
    assert "Balanced accuracy" not in page.tables["Results"][0]
    assert not any(label.startswith("Bars") for label in page.svgs)
    assert "Data" not in page.text("h2")
    facts = dict(zip(page.text("dt"), page.text("dd"), strict=True))
    assert facts["training images per class"] == "100 to 150 (ratio 1.5)"
    assert facts["test images per class"] == "9 to 90 (ratio 10.0)"
    assert facts["images left out"] == "0"
    assert "Balanced accuracy" in render(make_summary("default", train=(100, 151)), tmp_path).tables["Results"][0]


def test_many_imbalanced_classes_are_a_profile(tmp_path: Path) -> None:
    classes: dict[str, Any] = {**make_classes(40), "train": [0, *range(1, 40)]}
    page = render(make_summary("default", **classes), tmp_path)
    page.svg("Bars of the training images of 40 classes. Most: class-39 (39); fewest: class-0 (0).")
    assert "0 to 39; test images per class: 20." in page.words


def test_a_validation_split_within_train_is_told(tmp_path: Path) -> None:
    summary = make_summary("default")
    summary["data"]["train"] -= 287
    page = render(summary, tmp_path)
    assert "575, the validation split included" in page.text("dd")
