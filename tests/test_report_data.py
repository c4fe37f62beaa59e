"""Learning rates and images in the report."""

import re
from pathlib import Path
from typing import Any

import pytest

from report_helpers import (
    make_classes,
    make_summary,
    make_trials,
    render,
    svg_texts,
)


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
