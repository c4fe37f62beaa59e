"""Augmentation of images in memory: batched, on the device where they lie, each image on its own random stream."""

from mpvg.data.augment.batch import augment
from mpvg.data.augment.erasing import erase
from mpvg.data.augment.streams import keys, uniform

__all__ = ["augment", "erase", "keys", "uniform"]
