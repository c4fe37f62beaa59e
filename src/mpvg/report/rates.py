"""How the learning rates were chosen, where several were tried."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpvg.report.wording import listed, rate


@dataclass(frozen=True)
class Tried:
    """One learning rate of one scheme; `entry` is None where the scheme did not try it."""

    lr: float
    entry: Mapping[str, Any] | None
    chosen: bool


@dataclass(frozen=True)
class Rates:
    """The table of trials, and what to remark where the chosen rate is the smallest or largest tried."""

    seed: int
    lrs: list[float]
    rows: list[tuple[str, list[Tried]]]
    remarks: list[str]


def rates_section(trials: Mapping[str, Any] | None) -> Rates | None:
    """Lay out the trials of learning rates.

    Args:
        trials: The summary's `lr_trials`.

    Returns:
        What the template needs; None where only one rate was given.
    """
    if trials is None:
        return None
    by_scheme = trials["by_scheme"]
    lrs = sorted({one["lr"] for scheme in by_scheme for one in scheme["tried"]})
    rows = []
    for scheme in by_scheme:
        tried = {one["lr"]: one for one in scheme["tried"]}
        rows.append((scheme["scheme"], [Tried(lr, tried.get(lr), lr == scheme["chosen"]) for lr in lrs]))
    return Rates(trials["seed"], lrs, rows, _remarks(by_scheme))


def _remarks(by_scheme: list[Mapping[str, Any]]) -> list[str]:
    edges: dict[tuple[str, str, float], list[str]] = {}
    for scheme in by_scheme:
        if scheme["at_edge"]:
            top = scheme["chosen"] == max(one["lr"] for one in scheme["tried"])
            side = ("largest", "larger") if top else ("smallest", "smaller")
            edges.setdefault((*side, scheme["chosen"]), []).append(scheme["scheme"])
    return [
        f"For {listed(names)} the best was the {most} tried ({rate(lr)}): try {more} ones too."
        for (most, more, lr), names in edges.items()
    ]
