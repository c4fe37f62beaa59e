"""What the report of `mpvg analyze` leaves out, in sentences, and the notes on its models."""

from collections.abc import Iterator, Sequence

from mpvg.analysis.results import Findings
from mpvg.report.wording import listed

__all__ = ["about", "common_notes", "missing_causal", "missing_last", "missing_norms", "notes"]


def missing_last(findings: Sequence[Findings]) -> Iterator[str]:
    """Say which models have no Last LN, or add no position there."""
    yield from about([one.label for one in findings if one.last is None], "has no Last LN", "have no Last LN")
    plain = [one.label for one in findings if one.last is not None and one.last.position is None]
    if plain and len(plain) == sum(one.last is not None for one in findings):
        yield f"{listed(plain)}: no position is added after the Last LN, so figure 8 is left out."
    else:
        yield from about(plain, "adds no position after the Last LN", "add no position after the Last LN")


def missing_norms(findings: Sequence[Findings]) -> Iterator[str]:
    """Say which models have no map of token norms."""
    lacking = [one for one in findings if one.norms is None]
    reason = "no map of token norms, as there is no Last LN over patch tokens"
    yield from about([one.label for one in lacking], f"has {reason}", f"have {reason}")


def missing_causal(findings: Sequence[Findings]) -> Iterator[str]:
    """Say which models were not put to the causal test."""
    lacking = [one for one in findings if one.causal is None]
    silent = [one.label for one in lacking if not one.delivers]
    yield from about(silent, "delivers nothing that could be replaced", "deliver nothing that could be replaced")
    untested = [one.label for one in lacking if one.delivers]
    yield from about(untested, "was not put to the causal test", "were not put to the causal test")


def about(names: Sequence[str], one: str, several: str) -> list[str]:
    """Return a sentence on some models, none where there are none."""
    return [f"{listed(names)} {one if len(names) == 1 else several}."] if names else []


def notes(findings: Sequence[Findings]) -> Iterator[str]:
    """Return the notes on all models, each with the model's name where there are several that it is not true of."""
    of_all = common_notes(findings)
    yield from of_all
    for one in findings:
        yield from (f"{one.label}: {note}" for note in one.notes if note not in of_all)


def common_notes(findings: Sequence[Findings]) -> list[str]:
    """Return the notes that are true of all models."""
    return [note for note in findings[0].notes if all(note in one.notes for one in findings)]
