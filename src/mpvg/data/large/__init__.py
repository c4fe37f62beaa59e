"""Labelled sets that are too large for memory, read and augmented by worker processes."""

from mpvg.data.large.loaders import EvalLoader, TrainLoader
from mpvg.data.large.memory import large_from_memory
from mpvg.data.large.opening import open_large
from mpvg.data.large.order import epoch_order
from mpvg.data.large.split import LargeData, LargeSplit
from mpvg.data.large.transforms import eval_transform, train_transform

__all__ = [
    "EvalLoader",
    "LargeData",
    "LargeSplit",
    "TrainLoader",
    "epoch_order",
    "eval_transform",
    "large_from_memory",
    "open_large",
    "train_transform",
]
