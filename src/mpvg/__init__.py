"""Position schemes for vision transformers: MPVG, its baselines and ablations, on PyTorch and timm.

import mpvg, timm
model = timm.create_model("mpvg_deit_tiny_patch16_224", scheme="mpvg")
"""

import timm  # noqa: F401  # first of all: measured, importing torch before timm makes both a tenth slower

from mpvg import converted as converted
from mpvg import models as models
from mpvg.convert import convert
from mpvg.create import create_model
from mpvg.fold import fold
from mpvg.models.weights import load_official
from mpvg.position import Positions
from mpvg.predict import load
from mpvg.scheme import SCHEMES, PositionScheme
from mpvg.share import save

__version__ = "0.1.0"
__all__ = [
    "SCHEMES",
    "PositionScheme",
    "Positions",
    "__version__",
    "convert",
    "create_model",
    "fold",
    "load",
    "load_official",
    "save",
]
