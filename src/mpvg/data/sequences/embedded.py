"""Sets that need no file: generated sentences whose class is their order of words, and the series that sktime ships."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mpvg.data.sequences.splits import SequenceData, Sequences
from mpvg.errors import UserError, nearest

WORDS = "words"
DEFAULTS = {"text": WORDS, "series": "ItalyPowerDemand"}

NAMES = ("anna", "boris", "clara", "david", "elena", "felix", "greta", "hugo", "irene", "jonas", "karin", "luca")
VERBS = ("asks", "calls", "finds", "greets", "helps", "hears", "meets", "sees", "teaches", "thanks", "visits", "warns")
FILLERS = (
    *("again", "always", "early", "gladly", "here", "later", "maybe", "never"),
    *("now", "often", "once", "quietly", "soon", "there", "today", "twice"),
)
_CLASSES = ("verb first", "verb between", "verb last")
_LENGTHS = (5, 14)  # words
_TRAIN, _TEST = 1200, 600


def words() -> SequenceData:
    """Return 1,200 and 600 generated sentences; whether the verb is before, between or after two names is the class.

    A sentence is two names, a verb and fillers, so 5 to 14 words. Its words in three random orders, one of each class,
    are in the set together, so a classifier that knows the words without their order is right in one of three.
    """
    random = np.random.Generator(np.random.PCG64(20250225))
    bags: set[tuple[str, ...]] = set()
    sentences: list[str] = []
    while len(sentences) < _TRAIN + _TEST:
        names = random.permutation(NAMES)[:2].tolist()
        verb = VERBS[random.integers(len(VERBS))]
        fillers = random.permutation(FILLERS)[: random.integers(_LENGTHS[0], _LENGTHS[1] + 1) - 3].tolist()
        bag = tuple(sorted([*names, verb, *fillers]))
        if bag in bags:
            continue
        bags.add(bag)
        sentences += [_sentence(random, names, verb, fillers, before) for before in range(len(_CLASSES))]
    labels = np.arange(len(sentences)) % len(_CLASSES)
    whole = Sequences(tuple(sentences), labels.astype(np.int64))
    return SequenceData(
        name="synthetic word order",
        note="Synthetic: generated sentences of two names, a verb and fillers, whose class is the place of the verb "
        "before, between or after the names; the words without their order do not tell it",
        classes=_CLASSES,
        train=whole.take(random.permutation(_TRAIN)),
        val=None,
        test=whole.take(_TRAIN + random.permutation(_TEST)),
        synthetic=True,
    )


def _sentence(random: np.random.Generator, names: list[str], verb: str, fillers: list[str], before: int) -> str:
    """Return the words in a random order with so many names before the verb."""
    core = random.permutation(names).tolist()
    core.insert(before, verb)
    length = len(core) + len(fillers)
    places = set(random.permutation(length)[: len(core)].tolist())
    of_core, others = iter(core), iter(random.permutation(fillers).tolist())
    return " ".join(next(of_core) if place in places else next(others) for place in range(length))


def shipped(name: str) -> dict[str, Path]:
    """Return the training and the test file of a set that comes with sktime, which is not imported.

    Args:
        name: Its folder's, such as "ItalyPowerDemand".

    Raises:
        UserError: sktime is not installed, or ships no such set.
    """
    spec = find_spec("sktime")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"--data {name[:200]!r} is no file; the sets with a name come with sktime: pip install 'mpvg[sequences]'."
        )
    root = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    known = {path.name: _pair(path) for path in (sorted(root.iterdir()) if root.is_dir() else [])}
    whole = {folder: files for folder, files in known.items() if all(path.is_file() for path in files.values())}
    if name not in whole:
        raise UserError(
            f"--data {name[:200]!r} is no file and no set that comes with sktime{nearest(name, whole)}: "
            f"give a training and a test file, or one of {', '.join(whole)}."
        )
    return whole[name]


def _pair(folder: Path) -> dict[str, Path]:
    return {split: folder / f"{folder.name}_{split.upper()}.ts" for split in ("train", "test")}
