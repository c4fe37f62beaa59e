"""Text and series in a comparison: how they are loaded, checked against the models, and fed to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from mpvg.compare.feed import Inputs
from mpvg.compare.settings import Settings
from mpvg.create import Start, build
from mpvg.data.sequences import SequenceData, Sequences, load_series, load_text
from mpvg.data.sequences.batches import epoch_batches, eval_batches, pad, shuffled
from mpvg.data.sequences.preprocessing import SeriesPreprocessing, TextPreprocessing
from mpvg.data.sources import absolute_source
from mpvg.errors import UserError, nearest
from mpvg.sequence_card import SequenceCard
from mpvg.train.build import MOST_TOKENS

Placed = tuple[list[Tensor], Tensor]  # ids (T,) or series (T, C) of each sequence, labels (N,)
_SHOWN = 512  # sequences of the test split, at most, that correlations are taken over
_TOKENS = 2**15  # padded ones of these: one batch, whatever their length


def load_sequences(settings: Settings, schemes: Sequence[str]) -> tuple[dict[str, str], SequenceData]:
    """Return each scheme with what the model makes of it, and the sequences.

    Args:
        settings: The configuration.
        schemes: Canonical texts.

    Raises:
        UserError: The model or the sequences cannot be used.
    """
    asked = settings.sequences
    assert asked is not None
    known = timm.list_models("mpvg_sequence*")
    if settings.model not in known:
        raise UserError(
            f"--model {settings.model!r} is none for --task {asked.task}{nearest(settings.model, known)}: "
            f"use {known[0]}."
        )
    if asked.task == "text":
        if len(settings.sources) != 1:
            raise UserError(f"--data {' '.join(settings.sources)}: name one folder with train.tsv and test.tsv.")
        data = load_text(settings.sources[0])
    else:
        data = load_series(settings.sources, impute=asked.impute)
    feed = SequenceFeed(settings, data, data.train)
    arguments: dict[str, Any] = feed.model_arguments
    tokens = -(-arguments["max_length"] // arguments.get("patch_size", 1))
    if tokens > MOST_TOKENS:
        raise UserError(
            f"the longest of the {data.unit} has {tokens:,} tokens, more than {MOST_TOKENS:,}: cut them with "
            "--max-length."
        )
    built = {}
    for name in schemes:
        try:
            built[name] = str(build(settings.model, name, device="meta", **arguments).scheme)
        except ValueError as error:
            raise UserError(f"{settings.model} under {name}: {error}") from error
    return built, data


class SequenceFeed:
    """Turns sentences into ids, or normalises series, and batches them; methods are those of `Feed`.

    Args:
        settings: The configuration.
        data: The sequences.
        train: Those to train on, which alone make the vocabulary, or the mean and deviation.
        device: Where to compute.
    """

    def __init__(self, settings: Settings, data: SequenceData, train: Sequences, *, device: str = "cpu") -> None:
        asked = settings.sequences
        assert asked is not None
        self.device, self.asked = device, asked
        others = [split for split in (data.train, data.val, data.test) if split is not None]
        self.preprocessing: TextPreprocessing | SeriesPreprocessing
        if asked.task == "text":
            self.preprocessing = TextPreprocessing.of(train, others=others, max_length=asked.max_length)
        else:
            self.preprocessing = SeriesPreprocessing.of(
                train, others=others, patch_size=asked.patch_size, max_length=asked.max_length
            )
        self.model_arguments = {**self.preprocessing.model_arguments, "num_classes": len(data.classes)}

    def place(self, split: Sequences) -> Placed:
        items = self.preprocessing(split.items)
        if self.asked.shuffle_tokens:
            items = self._shuffle(items)
        return [item.to(self.device) for item in items], torch.from_numpy(split.labels).to(self.device)

    def batches(self, placed: Placed, *, batch_size: int, seed: int, epoch: int) -> Iterator[Any]:
        return epoch_batches(*placed, batch_size=batch_size, seed=seed, epoch=epoch)

    def prepare(self, batch: Any, *, seed: int, epoch: int) -> tuple[Inputs, Tensor]:
        x, mask, labels = batch
        return _inputs(x, mask), labels

    def readings(self, placed: Placed) -> Iterator[tuple[Inputs, Tensor]]:
        for x, mask, labels, _ in eval_batches(*placed):
            yield _inputs(x, mask), labels

    def sample(self, placed: Placed) -> Inputs:
        items, _ = placed
        longest = max(map(len, items)) // self.model_arguments.get("patch_size", 1) + 1
        count = min(len(items), _SHOWN, max(_TOKENS // longest, 1))
        rows = np.linspace(0, len(items) - 1, count).astype(int)
        return _inputs(*pad([items[row] for row in rows]))

    def shuffled(self, placed: Placed) -> Placed:
        items, labels = placed
        return self._shuffle(items), labels

    def _shuffle(self, items: Sequence[Tensor]) -> list[Tensor]:
        return shuffled(items, patch_size=self.model_arguments.get("patch_size", 1))

    def card(
        self, settings: Settings, *, scheme: str, seed: int, start: Start, classes: tuple[str, ...]
    ) -> SequenceCard:
        asked = self.asked
        return SequenceCard(
            task=asked.task,
            model=start.name,
            scheme=scheme,
            arguments=self.model_arguments,
            preprocessing=self.preprocessing,
            classes=classes,
            data={
                "source": [absolute_source(source) for source in settings.sources],
                "impute": asked.impute,
                "max_length": asked.max_length,
                "patch_size": asked.patch_size,
                "shuffle_tokens": asked.shuffle_tokens,
                "val_fraction": settings.val_fraction,
                "seed": seed,
            },
        )


def _inputs(x: Tensor, mask: Tensor | None) -> Inputs:
    return (x,) if mask is None else (x, mask)


def sequence_facts(settings: Settings, data: SequenceData) -> Mapping[str, Any]:
    """Return what a summary tells of the sequences' shape, by all of train, as before a part is held out."""
    feed = SequenceFeed(settings, data, data.train)
    lengths = [len(item) for item in feed.preprocessing(data.train.items)]
    of_model = {name: value for name, value in feed.model_arguments.items() if name != "num_classes"}
    splits = [split for split in (data.train, data.val, data.test) if split is not None]
    cut = sum(feed.preprocessing.count_cut(split.items) for split in splits)
    return {"lengths": [min(lengths), int(np.median(lengths)), max(lengths)], "cut": cut, **of_model}
