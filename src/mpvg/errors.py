"""What a user did that cannot work, and runs that failed, told in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input; its message names the value and the remedy. The command line prints it and exits with code 2."""


class RunError(RuntimeError):
    """A run failed; runs that finished before are kept. The command line prints it and exits with code 3."""


class NonFiniteLossError(RunError):
    """The loss of a run is no number any more."""


def nearest(word: object, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known word closest to `word`, or nothing."""
    match = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""
