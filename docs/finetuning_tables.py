"""Write the tables of docs/finetuning.md from results/finetuning/cifar100.csv: python docs/finetuning_tables.py

The rows come from `python benchmarks/finetuning.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis_tables import interval
from mpvg.stats import paired_difference, student_interval, verdict
from tables import DOCS, RESULTS, Row, Tables, rows, table, write

ROWS = RESULTS / "finetuning" / "cifar100.csv"
DOCUMENT = DOCS / "finetuning.md"
KINDS, HOW = ("pooled", "class token"), ("preserving", "norms at one")
Accuracies = dict[tuple[str, str], dict[str, float]]  # by start and scheme, of each seed


def accuracies() -> Accuracies:
    found: Accuracies = {}
    for row in rows(ROWS):
        found.setdefault((row["start"], row["scheme"]), {})[row["seed"]] = 100 * float(row["accuracy"])
    return found


def compared(found: Accuracies, one: tuple[str, str], other: tuple[str, str], name: str) -> list[str]:
    """Return the difference of two kinds of runs, paired by seed, and what it shows."""
    difference = paired_difference(list(found[one].values()), [found[other][seed] for seed in found[one]])
    return [interval(difference, "+.1f"), verdict(difference, name)]


def by_scheme(starts: Sequence[str]) -> str:
    """Return the accuracy of each scheme from each start, beside the first scheme of that start."""
    found = accuracies()
    body = []
    for start in starts:
        schemes = [scheme for name, scheme in found if name == start]
        for scheme in schemes:
            first = scheme == schemes[0]
            beside = ["", "reference"] if first else compared(found, (start, scheme), (start, schemes[0]), schemes[0])
            accuracy = interval(student_interval(list(found[start, scheme].values())), ".1f")
            body.append([start if first else "", f"`{scheme}`", accuracy, *beside])
    return table(["start", "scheme", "test accuracy, % (95 %)", "minus the first, points", ""], body)


def preserving() -> str:
    """Return what preserving changes, scheme by scheme."""
    found = accuracies()
    body = []
    for start, scheme in found:
        kind, _, how = start.partition(", ")
        other = (f"{kind}, norms at one", scheme)
        if how == "preserving" and other in found and scheme not in ("gap", "default"):
            body.append([kind, f"`{scheme}`", *compared(found, (start, scheme), other, "norms at one")])
    return table(["pretrained", "scheme", "preserving minus norms at one, points (95 %)", ""], body)


def pretraining() -> str:
    """Return what the pretrained weights are worth, scheme by scheme."""
    found = accuracies()
    body = [
        [f"`{scheme}`", start, *compared(found, (start, scheme), ("scratch", scheme), "from scratch")]
        for start, scheme in found
        if start.endswith("preserving") and ("scratch", scheme) in found
    ]
    return table(["scheme", "start", "minus from scratch, points (95 %)", ""], body)


def setting() -> str:
    """Return what all runs had in common, in a sentence."""
    first: Row = rows(ROWS)[0]
    seeds = len({row["seed"] for row in rows(ROWS)})
    hours = sum(float(row["seconds"]) for row in rows(ROWS)) / 3600
    return (
        f"{len(rows(ROWS))} runs, {seeds} seeds, {first['epochs']} epochs of batches of {first['batch_size']}; torch "
        f"{first['torch']}, timm {first['timm']}; {first['hardware']}; {hours:.1f} hours of one core in all."
    )


TABLES: Tables = {
    "setting": setting,
    "schemes": lambda: by_scheme([*(f"{kind}, {how}" for kind in KINDS for how in HOW), "scratch"]),
    "preserving": preserving,
    "pretraining": pretraining,
    "frozen": lambda: by_scheme(["pooled, head only", "pooled, positions and head only"]),
}

if __name__ == "__main__":
    write(DOCUMENT, TABLES)
