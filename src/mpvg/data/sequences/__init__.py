"""Labelled sentences and time series: files, embedded sets, preprocessing and batches."""

from __future__ import annotations

from mpvg.data.sequences.embedded import DEFAULTS
from mpvg.data.sequences.series import load_series
from mpvg.data.sequences.splits import Items, SequenceData, Sequences
from mpvg.data.sequences.text import load_text

__all__ = ["DEFAULTS", "Items", "SequenceData", "Sequences", "load_series", "load_text"]
