"""From sentences and series to what a model is fed: it travels in a checkpoint, so that prediction sees the same."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from mpvg.data.sequences.splits import Items, Sequences, Series

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, UNKNOWN = 0, 1
_SPECIAL = ("[PAD]", "[UNK]")
_MOST_WORDS = 20_000
_FEW_TOKENS = 5_000  # of a training split, below which words that occur once are kept
_MOST_PATCHES = 64
_CONSTANT_BELOW = 1e-6  # deviation by the largest value: what is left of a constant by rounding


@dataclass(frozen=True)
class TextPreprocessing:
    """The words that are known, and how many tokens of a sentence are read.

    Args:
        tokenizer: A tokenizer as JSON of the tokenizers library, with [PAD] as 0 and [UNK] as 1.
        max_length: Tokens that are kept of a sentence.
    """

    tokenizer: str
    max_length: int

    def __post_init__(self) -> None:
        _check_positive("max_length", self.max_length)

    @classmethod
    def of(
        cls, train: Sequences, *, others: Sequence[Sequences] = (), max_length: int | None = None
    ) -> TextPreprocessing:
        """Return the preprocessing that knows the words of the training sentences.

        A word is kept if it occurs twice, or once where there are fewer than 5,000 tokens, and at most 20,000 are.

        Args:
            train: The training sentences, the only ones that words are taken from.
            others: Splits whose longest sentence is to fit too.
            max_length: Tokens to keep of a sentence; None keeps all of the longest.
        """
        tokenizer = _trained(_sentences(train.items))
        if max_length is None:
            items = (item for split in (train, *others) for item in _sentences(split.items))
            max_length = max(len(ids) for ids in _encoded(tokenizer, items))
        return cls(tokenizer.to_str(), max_length)

    @property
    def model_arguments(self) -> dict[str, int]:
        """What a model's constructor must be given."""
        return {"vocab_size": self._tokenizer.get_vocab_size(), "max_length": self.max_length}

    def __call__(self, items: Items) -> list[Tensor]:
        """Return the ids (T,) of each sentence as int64; longer ones are cut, one without a token becomes one [UNK]."""
        encoded = _encoded(self._tokenizer, _sentences(items))
        return [torch.tensor(ids[: self.max_length], dtype=torch.int64) for ids in encoded]

    def count_cut(self, items: Items) -> int:
        """Return how many sentences are longer than what is kept of them."""
        return sum(len(ids) > self.max_length for ids in _encoded(self._tokenizer, _sentences(items)))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.tokenizer)


@dataclass(frozen=True)
class SeriesPreprocessing:
    """Mean and deviation that normalise series, how many steps make a token, and how many are read.

    Args:
        mean: Of each channel.
        std: Of each channel.
        patch_size: Steps of a token.
        max_length: Steps that are kept of a series.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch_size: int
    max_length: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # JSON has lists
        object.__setattr__(self, "std", tuple(self.std))
        if len(self.mean) != len(self.std) or not self.mean or not all(std > 0 for std in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std}: one of each a channel is needed, and std above 0.")
        _check_positive("patch_size", self.patch_size)
        _check_positive("max_length", self.max_length)

    @classmethod
    def of(
        cls,
        train: Sequences,
        *,
        others: Sequence[Sequences] = (),
        patch_size: int | None = None,
        max_length: int | None = None,
    ) -> SeriesPreprocessing:
        """Return the preprocessing that gives each channel mean 0 and deviation 1 over all training steps.

        A channel that is constant in train is centred, and scaled by its value if that is above 1.

        Args:
            train: The training series, the only ones that are normalised by.
            others: Splits whose longest series is to fit too.
            patch_size: Steps of a token; None takes the smallest that makes at most 64 tokens of the longest series.
            max_length: Steps to keep of a series; None keeps all of the longest.
        """
        steps = np.concatenate(_series(train.items))
        mean = steps.mean(axis=0, dtype=np.float64)
        std = steps.std(axis=0, dtype=np.float64)
        constant = std <= _CONSTANT_BELOW * np.abs(steps).max(axis=0)
        std = np.where(constant, np.maximum(np.abs(mean), 1), std)
        if max_length is None:
            max_length = max(len(item) for split in (train, *others) for item in split.items)
        _check_positive("max_length", max_length)
        if patch_size is None:
            patch_size = math.ceil(max_length / _MOST_PATCHES)
        return cls(tuple(mean.tolist()), tuple(std.tolist()), patch_size, max_length)

    @property
    def model_arguments(self) -> dict[str, int]:
        """What a model's constructor must be given."""
        return {"in_chans": len(self.mean), "patch_size": self.patch_size, "max_length": self.max_length}

    def __call__(self, items: Items) -> list[Tensor]:
        """Return each series (T, C) normalised, as float32; longer ones are cut."""
        mean, std = np.array(self.mean), np.array(self.std)
        found = []
        for values in _series(items):
            if values.shape[1] != len(mean):
                raise ValueError(f"a series has {values.shape[1]} channels, not {len(mean)} as those trained on.")
            normalised = (values[: self.max_length] - mean) / std
            found.append(torch.from_numpy(normalised.astype(np.float32)))
        return found

    def count_cut(self, items: Items) -> int:
        """Return how many series are longer than what is kept of them."""
        return sum(len(values) > self.max_length for values in _series(items))


def _trained(sentences: tuple[str, ...]) -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    def tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
        made = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL[UNKNOWN]))
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return made

    learner = tokenizer({})
    tokens = 0
    for sentence in sentences:
        tokens += len(learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str(sentence)))
        if tokens >= _FEW_TOKENS:
            break
    trainer = trainers.WordLevelTrainer(
        vocab_size=_MOST_WORDS,
        min_frequency=1 if tokens < _FEW_TOKENS else 2,
        special_tokens=list(_SPECIAL),
        show_progress=False,
    )
    with _one_thread():
        learner.train_from_iterator(sentences, trainer)
    # The trained one would read "[PAD]" in a sentence as the padding; made anew from its words, it does not.
    return tokenizer(learner.get_vocab(with_added_tokens=True))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep tokenizers from starting threads, after which it would warn of every fork."""
    key = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(key)
    os.environ[key] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _encoded(tokenizer: Tokenizer, sentences: Iterator[str] | tuple[str, ...]) -> Iterator[list[int]]:
    for sentence in sentences:
        yield tokenizer.encode(sentence).ids or [UNKNOWN]


def _sentences(items: Items) -> tuple[str, ...]:
    if not all(isinstance(item, str) for item in items):
        raise ValueError("series were given where sentences are needed: use SeriesPreprocessing.")
    return cast(tuple[str, ...], items)


def _series(items: Items) -> tuple[Series, ...]:
    if any(isinstance(item, str) for item in items):
        raise ValueError("sentences were given where series are needed: use TextPreprocessing.")
    return cast(tuple[Series, ...], items)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}: it must be 1 or more.")
