"""The operations by timm's names: what each one is, and how a magnitude becomes its argument."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What is done to an image."""

    NOTHING = 0
    AUTO_CONTRAST = 1
    EQUALIZE = 2
    INVERT = 3
    POSTERIZE = 4
    SOLARIZE = 5
    SOLARIZE_ADD = 6
    BRIGHTNESS = 7
    CONTRAST = 8
    COLOR = 9
    SHARPNESS = 10
    ROTATE = 11
    SHEAR_X = 12
    SHEAR_Y = 13
    TRANSLATE_X = 14
    TRANSLATE_Y = 15


LOOKED_UP = range(Kind.AUTO_CONTRAST, Kind.COLOR)  # each value becomes another, whatever its place


class Argument(NamedTuple):
    """How a magnitude becomes an argument: base + sign x value, at least `least`; value = magnitude / 10 x scale.

    Args:
        kind: What is done with it.
        scale: The value at magnitude 10.
        whole: Whether the value is cut off to a whole number.
        most: The largest value.
        negated: Whether the value is negated at random.
        base: The argument of the value 0.
        sign: 1 or -1.
        least: The smallest argument.
    """

    kind: Kind
    scale: float = 0.0
    whole: bool = False
    most: float = float("inf")
    negated: bool = False
    base: float = 0.0
    sign: int = 1
    least: float = float("-inf")


def _blend(kind: Kind) -> Argument:
    return Argument(kind, 1.8, base=0.1)


def _blend_increasing(kind: Kind) -> Argument:
    return Argument(kind, 0.9, negated=True, base=1.0, least=0.1)


ARGUMENTS = {
    "AutoContrast": Argument(Kind.AUTO_CONTRAST),
    "Equalize": Argument(Kind.EQUALIZE),
    "Invert": Argument(Kind.INVERT),
    "Posterize": Argument(Kind.POSTERIZE, 4, whole=True),
    "PosterizeIncreasing": Argument(Kind.POSTERIZE, 4, whole=True, base=4, sign=-1),
    "Solarize": Argument(Kind.SOLARIZE, 256, whole=True, most=256),
    "SolarizeIncreasing": Argument(Kind.SOLARIZE, 256, whole=True, most=256, base=256, sign=-1),
    "SolarizeAdd": Argument(Kind.SOLARIZE_ADD, 110, whole=True, most=128),
    "Brightness": _blend(Kind.BRIGHTNESS),
    "BrightnessIncreasing": _blend_increasing(Kind.BRIGHTNESS),
    "Contrast": _blend(Kind.CONTRAST),
    "ContrastIncreasing": _blend_increasing(Kind.CONTRAST),
    "Color": _blend(Kind.COLOR),
    "ColorIncreasing": _blend_increasing(Kind.COLOR),
    "Desaturate": Argument(Kind.COLOR, 0.5, base=0.5, sign=-1, least=0.0),
    "Sharpness": _blend(Kind.SHARPNESS),
    "SharpnessIncreasing": _blend_increasing(Kind.SHARPNESS),
    "Rotate": Argument(Kind.ROTATE, 30, negated=True),
    "ShearX": Argument(Kind.SHEAR_X, 0.3, negated=True),
    "ShearY": Argument(Kind.SHEAR_Y, 0.3, negated=True),
    "TranslateXRel": Argument(Kind.TRANSLATE_X, 0.45, negated=True),
    "TranslateYRel": Argument(Kind.TRANSLATE_Y, 0.45, negated=True),
}
