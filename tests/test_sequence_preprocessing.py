"""From sentences and series to tensors, and the batches and shuffled copies made of these."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mpvg.data.sequences import Items, Sequences, load_series, load_text
from mpvg.data.sequences.batches import epoch_batches, eval_batches, pad, shuffled
from mpvg.data.sequences.preprocessing import PAD, UNKNOWN, SeriesPreprocessing, TextPreprocessing

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=9)


def sentences(*items: str) -> Sequences:
    return Sequences(items, np.zeros(len(items), np.int64))


def of_steps(*items: Any) -> Sequences:
    """Return series of lists (T, C), or (T,) for one channel."""
    arrays = [np.array(item, np.float32) for item in items]
    found = tuple(array[:, None] if array.ndim == 1 else array for array in arrays)
    return Sequences(found, np.zeros(len(items), np.int64))


def tensors(lengths: Sequence[int], *, channels: int | None) -> list[Tensor]:
    """Return sequences whose values are all different and above 0."""
    shape = () if channels is None else (channels,)
    parts = torch.arange(1, 1 + sum(lengths) * (channels or 1)).split([length * (channels or 1) for length in lengths])
    return [part.reshape(-1, *shape) if channels is None else part.reshape(-1, *shape).float() for part in parts]


def again(preprocessing: TextPreprocessing | SeriesPreprocessing) -> TextPreprocessing | SeriesPreprocessing:
    return type(preprocessing)(**json.loads(json.dumps(asdict(preprocessing))))


# Sentences


def test_words_are_those_of_train() -> None:
    train = sentences("The film, the FILM!", "a ﬁne film")
    made = TextPreprocessing.of(train, others=[sentences("one two three four five six seven")])
    assert made.model_arguments == {"vocab_size": 2 + len({"the", "film", ",", "!", "a", "fine"}), "max_length": 7}
    first, second, other = made(("The film, the FILM!", "a fine THE", "unheard film"))
    assert first.dtype == torch.int64
    assert first[[0, 1]].tolist() == first[[3, 4]].tolist()
    assert UNKNOWN not in torch.cat([first, second])
    assert PAD not in torch.cat([first, second, other])
    assert other.tolist() == [UNKNOWN, first[1]]
    assert TextPreprocessing.of(train).max_length == 6


@pytest.mark.parametrize("blank", [" ", "\u2028", ""])
def test_a_sentence_without_a_token_is_one_unknown(blank: str) -> None:
    made = TextPreprocessing.of(sentences("a b", blank))
    assert [ids.tolist() for ids in made((blank, "\x01"))] == [[UNKNOWN]] * 2
    assert TextPreprocessing.of(sentences(blank)).max_length == 1


def test_marks_in_a_sentence_are_words_like_others() -> None:
    made = TextPreprocessing.of(sentences("[PAD] means nothing", "[UNK] neither"), max_length=9)
    (ids,) = made(("[PAD] [UNK]",))
    assert len(ids) == 6
    assert PAD not in ids


def test_rare_words_are_kept_in_small_sets_alone() -> None:
    few, many = ["once upon a time a time"], ["a time"] * 2500
    assert TextPreprocessing.of(sentences(*few)).model_arguments["vocab_size"] == 6
    assert TextPreprocessing.of(sentences(*few, *many)).model_arguments["vocab_size"] == 4
    assert TextPreprocessing.of(sentences(*few, *many[:2496])).model_arguments["vocab_size"] == 6


def test_vocabularies_are_bounded() -> None:
    many = [f"w{number} w{number}" for number in range(20_500)]
    assert TextPreprocessing.of(sentences(*many), max_length=2).model_arguments["vocab_size"] == 20_000


def test_long_sentences_are_cut_and_counted() -> None:
    made = TextPreprocessing.of(sentences("a b c d", "a b"), max_length=3)
    assert [len(ids) for ids in made(("a b c d", "a b c", "d"))] == [3, 3, 1]
    assert made.count_cut(("a b c d", "a b c", "d", "a a a a a")) == 2
    assert TextPreprocessing.of(sentences("a b c d")).count_cut(("a b c d",)) == 0


def test_training_a_tokenizer_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "TOKENIZERS_PARALLELISM"
    for before in (None, "true"):
        monkeypatch.delenv(key, raising=False)
        if before:
            monkeypatch.setenv(key, before)
        TextPreprocessing.of(sentences("a b"))
        assert os.environ.get(key) == before


def test_preprocessing_of_text_survives_json() -> None:
    data = load_text("words")
    made = TextPreprocessing.of(data.train, others=[data.test])
    assert again(made) == made == TextPreprocessing.of(data.train, others=[data.test])
    assert made.model_arguments["max_length"] == 14
    assert torch.equal(again(made)(data.test.items)[3], made(data.test.items)[3])


# Series


def test_series_are_normalised_by_train() -> None:
    data = load_series(["BasicMotions"])
    made = SeriesPreprocessing.of(data.train)
    steps = torch.cat(made(data.train.items))
    assert steps.dtype == torch.float32
    torch.testing.assert_close(steps.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(steps.std(0, correction=0), torch.ones(6))
    values = cast(tuple[Any, ...], data.test.items)[2]
    expected = (values - np.array(made.mean)) / np.array(made.std)
    np.testing.assert_allclose(made(data.test.items)[2].numpy(), expected, rtol=1e-6)
    assert again(made) == made
    assert hash(again(made)) == hash(made)
    assert made.model_arguments == {"in_chans": 6, "patch_size": 2, "max_length": 100}


def test_steps_weigh_the_same_whatever_their_series() -> None:
    made = SeriesPreprocessing.of(of_steps([0.0, 0.0, 0.0], [4.0]))
    assert (made.mean, made.std) == ((1.0,), (math.sqrt(3),))


def test_constant_channels_stay_small() -> None:
    tiny = 1e-6
    train = of_steps([[0, 5000, 1e6, tiny]] * 3 + [[0, 5000, 1e6 + 0.0625, -tiny]])
    made = SeriesPreprocessing.of(train)
    assert made.std[:3] == pytest.approx((1, 5000, 1e6))
    assert made.std[3] == pytest.approx(tiny * math.sqrt(3) / 2)  # small, but no constant
    (found,) = made(of_steps([[0, 5000, 1e6, tiny], [3, 5100, 1e6, tiny]]).items)
    assert found[0, :3].abs().max() < 1e-6
    assert found[1].tolist() == pytest.approx([3, 0.02, 0, 1 / math.sqrt(3)], abs=1e-6)


@pytest.mark.parametrize(("longest", "patch_size"), [(1, 1), (64, 1), (65, 2), (128, 2), (129, 3), (1344, 21)])
def test_the_default_patch_makes_at_most_64_tokens(longest: int, patch_size: int) -> None:
    train, other = of_steps([1.0, 2.0]), of_steps(range(longest))
    made = SeriesPreprocessing.of(train, others=[other])
    assert made.model_arguments == {"in_chans": 1, "patch_size": patch_size, "max_length": max(longest, 2)}
    assert SeriesPreprocessing.of(train, others=[other], patch_size=5).patch_size == 5
    assert SeriesPreprocessing.of(train, others=[other], max_length=65).patch_size == 2


def test_long_series_are_cut_and_counted() -> None:
    made = SeriesPreprocessing.of(of_steps([-1.0, 1.0]), max_length=3)
    assert [values.ravel().tolist() for values in made(of_steps([1, 2, 3, 4], [5]).items)] == [[1, 2, 3], [5]]
    assert made.count_cut(of_steps([1, 2, 3, 4], [5, 6, 7], [1] * 9).items) == 2


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"std": (0.0,)}, "std above 0"),
        ({"std": (1.0, 1.0)}, "one of each a channel"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"max_length": 0}, "max_length is 0"),
    ],
)
def test_preprocessing_that_cannot_work(arguments: dict[str, Any], what: str) -> None:
    right: dict[str, Any] = {"mean": (0.0,), "std": (1.0,), "patch_size": 1, "max_length": 5}
    with pytest.raises(ValueError, match=what):
        SeriesPreprocessing(**right | arguments)


def test_sentences_and_series_are_not_confused() -> None:
    text, numbers = sentences("a b"), of_steps([1, 2])
    with pytest.raises(ValueError, match="use TextPreprocessing"):
        SeriesPreprocessing.of(text)
    with pytest.raises(ValueError, match="use SeriesPreprocessing"):
        TextPreprocessing.of(numbers)
    with pytest.raises(ValueError, match="a series has 2 channels, not 1"):
        SeriesPreprocessing.of(numbers)(of_steps([[1, 2]]).items)
    with pytest.raises(ValueError, match="max_length is 0"):
        TextPreprocessing.of(text, max_length=0)


# Batches


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, channels=st.none() | st.integers(1, 3))
def test_padding_keeps_every_value_at_its_place(lengths: list[int], channels: int | None) -> None:
    items = tensors(lengths, channels=channels)
    x, mask = pad(items)
    assert x.shape == (len(items), max(lengths), *(() if channels is None else (channels,)))
    assert x.dtype == (torch.int64 if channels is None else torch.float32)
    assert (mask is None) == (len(set(lengths)) == 1)
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == lengths
    for row, item in enumerate(items):
        assert torch.equal(x[row][mask[row]], item)
        assert torch.equal(x[row, : len(item)], item)
    assert not x[~mask].any()


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    items, labels = tensors([3, 5, 2, 4, 6, 1, 7], channels=2), torch.arange(7) * 10

    def drawn(**changes: int) -> list[list[int]]:
        arguments = {"batch_size": 3, "seed": 1, "epoch": 2} | changes
        return [found.tolist() for *_, found in epoch_batches(items, labels, **arguments)]

    order = np.random.Generator(np.random.PCG64([1, 2])).permutation(7)
    assert drawn() == (order[:6].reshape(2, 3) * 10).tolist()
    assert drawn(first_batch=1) == drawn()[1:]
    assert drawn(seed=2) != drawn() != drawn(epoch=3)
    assert drawn(batch_size=8) == []
    x, mask, found = next(epoch_batches(items, labels, batch_size=3, seed=1, epoch=2))
    expected, expected_mask = pad([items[row] for row in order[:3]])
    assert torch.equal(x, expected)
    assert mask is not None
    assert expected_mask is not None
    assert torch.equal(mask, expected_mask)
    assert found.dtype == labels.dtype


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, places=st.integers(1, 40))
def test_evaluation_sees_every_sequence_once(lengths: list[int], places: int) -> None:
    items, labels = tensors(lengths, channels=1), torch.arange(len(lengths)) * 10
    seen, largest = [], []
    for x, mask, found, rows in eval_batches(items, labels, places=places):
        assert torch.equal(found, rows * 10)
        assert len(x) == 1 or x.shape[0] * x.shape[1] <= places
        for number, row in enumerate(rows.tolist()):
            real = x[number] if mask is None else x[number][mask[number]]
            assert torch.equal(real, items[row])
        seen += rows.tolist()
        largest += [x.shape[1]] * len(x)
    assert sorted(seen) == list(range(len(items)))
    assert largest == sorted(largest)


def test_evaluation_fills_its_batches() -> None:
    items, labels = tensors([1, 9, 1, 9, 1, 1], channels=None), torch.zeros(6)
    assert [rows.tolist() for *_, rows in eval_batches(items, labels, places=18)] == [[0, 2, 4, 5], [1, 3]]
    assert len(list(eval_batches(items, labels))) == 1
    assert list(eval_batches([], labels)) == []


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, patch_size=st.integers(1, 5), channels=st.none() | st.integers(1, 3), seed=st.integers(0, 99))
def test_shuffling_moves_whole_tokens(lengths: list[int], patch_size: int, channels: int | None, seed: int) -> None:
    items = tensors(lengths, channels=channels)
    mixed = shuffled(items, patch_size=patch_size, seed=seed)
    for before, after in zip(items, mixed, strict=True):
        whole = len(before) // patch_size * patch_size
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
        assert torch.equal(after[whole:], before[whole:])
        assert sorted(part.tolist() for part in after[:whole].split(patch_size) if len(part)) == [
            part.tolist() for part in before[:whole].split(patch_size) if len(part)
        ]


def test_shuffling_is_a_function_of_seed_and_number() -> None:
    items = [torch.arange(20)] * 3
    first, second, third = shuffled(items, seed=0)
    assert torch.equal(shuffled(items[:2], seed=0)[1], second)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert not torch.equal(first, shuffled(items, seed=1)[0])
    assert not torch.equal(first, items[0])
    order = np.random.Generator(np.random.PCG64([0, 0])).permutation(20)
    assert first.tolist() != order.tolist()  # an own stream


def test_items_keep_their_type() -> None:
    items: Items = load_text("words").train.take(np.array([4, 2])).items
    assert items == tuple(load_text("words").train.items[row] for row in (4, 2))
