"""Small models of sequences, perturbed, sequences of several lengths, and checkpoints like those of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from helpers import perturb
from mpvg.checkpoint import save_safetensors
from mpvg.data.sequences import SequenceData, load_series, load_text
from mpvg.data.sequences.batches import pad
from mpvg.data.sequences.preprocessing import SeriesPreprocessing, TextPreprocessing
from mpvg.sequence_card import SequenceCard

SMALL: dict[str, Any] = {"max_length": 20, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 3}
KINDS: dict[str, dict[str, Any]] = {"text": {"vocab_size": 11}, "series": {"in_chans": 2, "patch_size": 3}}
SHRUNKEN = {"embed_dim": 16, "depth": 3, "num_heads": 2}
Batch = tuple[Tensor, Tensor | None]


def small(kind: str, scheme: str = "mpvg", **changes: Any) -> Any:
    """Return a shrunken, perturbed model in eval mode, in float64."""
    torch.manual_seed(0)
    model = timm.create_model("mpvg_sequence", scheme=scheme, **{**SMALL, **KINDS[kind], **changes})
    return perturb(model).eval().double()


def sequences(kind: str, *lengths: int, seed: int = 0) -> list[Tensor]:
    """Return token ids (T,), or series (T, 2) in float64."""
    random = torch.Generator().manual_seed(seed)
    if kind == "text":
        return [torch.randint(0, 11, (length,), generator=random) for length in lengths]
    return [torch.randn(length, 2, generator=random, dtype=torch.float64) for length in lengths]


def batches(items: list[Tensor], *sizes: int) -> list[Batch]:
    """Return sequences in batches of these sizes, padded."""
    assert sum(sizes) == len(items)
    rest = iter(items)
    return [pad([next(rest) for _ in range(size)]) for size in sizes]


def data_of(kind: str) -> tuple[list[str], SequenceData]:
    """Return the source and the sequences of the set that is embedded."""
    if kind == "text":
        return ["words"], load_text("words")
    return ["ItalyPowerDemand"], load_series(["ItalyPowerDemand"])


def checkpoint(
    path: Path, kind: str, *, scheme: str = "mpvg", seed: int = 0, words: int = 1200, **of_data: Any
) -> Path:
    """Write a perturbed model as a comparison does, of text with the vocabulary of so many sentences."""
    source, data = data_of(kind)
    preprocessing: TextPreprocessing | SeriesPreprocessing
    if kind == "text":
        preprocessing = TextPreprocessing.of(data.train.take(np.arange(words)), others=[data.train])
    else:
        preprocessing = SeriesPreprocessing.of(data.train, patch_size=2)
    card = SequenceCard(
        task=kind,
        model="mpvg_sequence",
        scheme=scheme,
        arguments={**preprocessing.model_arguments, **SHRUNKEN, "num_classes": len(data.classes)},
        preprocessing=preprocessing,
        classes=data.classes,
        data={
            **{"source": source, "impute": False, "max_length": None, "patch_size": None, "val_fraction": 0.1},
            **{"shuffle_tokens": False, "seed": seed},
            **of_data,
        },
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    save_safetensors(path, card, perturb(card.build(), seed=seed))
    return path
