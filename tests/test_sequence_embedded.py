"""Labelled sequences that need no file: generated sentences, and series that come with sktime."""

from __future__ import annotations

import importlib.machinery
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import cast

import numpy as np
import pytest

from mpvg.data.fingerprint import fingerprint
from mpvg.data.sequences import DEFAULTS, Sequences, embedded, load_series, load_text
from test_sequence_data import refused, series


def by_bag(split: Sequences) -> Mapping[tuple[str, ...], list[int]]:
    """Return the labels of every bag of words."""
    found = defaultdict(list)
    for sentence, label in zip(cast(tuple[str, ...], split.items), split.labels.tolist(), strict=True):
        found[tuple(sorted(sentence.split()))].append(label)
    return found


def rule(sentence: str) -> int:
    """Count the names before the verb."""
    before = 0
    for word in sentence.split():
        if word in embedded.VERBS:
            return before
        before += word in embedded.NAMES
    raise AssertionError(sentence)


def test_only_the_order_of_words_tells_the_class() -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    data = load_text(DEFAULTS["text"])
    assert (len(data.train), data.val, len(data.test)) == (1200, None, 600)
    assert data.class_counts == (400, 400, 400)
    train, test = cast(tuple[str, ...], data.train.items), cast(tuple[str, ...], data.test.items)
    assert len({*train, *test}) == 1800
    assert {len(sentence.split()) for sentence in (*train, *test)} == set(range(5, 15))
    for split in (data.train, data.test):
        assert [rule(str(sentence)) for sentence in split.items] == split.labels.tolist()
        assert all(sorted(labels) == [0, 1, 2] for labels in by_bag(split).values())
    assert not set(by_bag(data.train)) & set(by_bag(data.test))
    words = CountVectorizer().fit(train)
    order_blind = LogisticRegression().fit(words.transform(train), data.train.labels)
    assert order_blind.score(words.transform(test), data.test.labels) == pytest.approx(1 / 3)


def test_generated_sentences_are_fixed_and_called_synthetic() -> None:
    data = load_text("words")
    assert (data.name, data.synthetic) == ("synthetic word order", True)
    assert data.note.startswith("Synthetic: generated")
    assert fingerprint(data) == fingerprint(load_text("words")) == "232e3b8e74a56a17"
    assert data.train.labels[:12].tolist() != sorted(data.train.labels[:12])


def test_series_that_come_with_sktime() -> None:
    data = load_series([DEFAULTS["series"]])
    assert (data.name, len(data.train), len(data.test), data.classes) == ("ItalyPowerDemand", 67, 1029, ("1", "2"))
    assert {item.shape for item in series(data.train)} == {(24, 1)}
    assert not data.synthetic
    assert "sktime" in data.note
    assert series(data.train)[0][0, 0] == np.float32(-0.71051757)
    moves = load_series(["BasicMotions"])
    assert (moves.channels, moves.classes) == (6, ("Badminton", "Running", "Standing", "Walking"))
    refused(r"'Gunpoint' is no file and no set that comes with sktime \(did you mean 'GunPoint'\?\)", ["Gunpoint"])
    refused("no set that comes with sktime", ["../data/GunPoint"])
    refused(r"Tecator_TRAIN\.ts, line \d+: @targetLabel means regression", ["Tecator"])


def test_series_without_sktime_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> importlib.machinery.ModuleSpec | None:
        assert name == "sktime"
        return None

    monkeypatch.setattr(embedded, "find_spec", nothing)
    refused(re.escape("pip install 'mpvg[sequences]'"), ["ItalyPowerDemand"])
