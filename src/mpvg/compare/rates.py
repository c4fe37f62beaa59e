"""Jobs, and the learning rate of each scheme: the best on the validation split of those tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mpvg.compare.settings import Settings
from mpvg.errors import NonFiniteLossError

TRIAL_SEED = 0  # one seed, so that seeds added later do not change which rate was chosen

Record = Mapping[str, Any]


class Job(NamedTuple):
    """One model to train: a run that is tested, or a trial of a learning rate that never sees the test split."""

    scheme: str
    seed: int
    lr: float | None  # None where it will be chosen once the trials are done
    trial: bool = False

    def __str__(self) -> str:
        return f"{self.scheme}, lr {self.lr:g}" if self.trial else f"{self.scheme}, seed {self.seed}"


def trials(schemes: Sequence[str], settings: Settings) -> list[Job]:
    """Return the trials that choosing a learning rate takes: none where there is no choice."""
    if len(settings.lrs) == 1:
        return []
    return [Job(scheme, TRIAL_SEED, lr, trial=True) for scheme in schemes for lr in settings.lrs]


def chosen_rates(schemes: Sequence[str], settings: Settings, tried: Sequence[Record]) -> dict[str, float]:
    """Return each scheme's learning rate.

    Args:
        schemes: Their names.
        settings: The configuration, for the one rate where there is no choice.
        tried: Records of all trials.

    Returns:
        The rate by scheme.

    Raises:
        NonFiniteLossError: A scheme's loss became NaN or infinite with every rate.
    """
    if not tried:
        return dict.fromkeys(schemes, settings.lrs[0])
    return {scheme: choose([trial for trial in tried if trial["scheme"] == scheme])["lr"] for scheme in schemes}


def choose(tried: Sequence[Record]) -> Record:
    """Return the best of one scheme's trials: by validation accuracy, then validation loss, then the smaller rate.

    Args:
        tried: Records of `try_rate`.

    Raises:
        NonFiniteLossError: With every rate the loss became NaN or infinite.
    """
    finite = [trial for trial in tried if trial["val_accuracy"] is not None]
    if not finite:
        rates = ", ".join(f"{trial['lr']:g}" for trial in tried)
        raise NonFiniteLossError(
            f"the loss of {tried[0]['scheme']} is no number with any --lr tried ({rates}): try lower ones."
        )
    return max(finite, key=lambda trial: (trial["val_accuracy"], -trial["val_loss"], -trial["lr"]))


def describe_trials(schemes: Sequence[str], tried: Sequence[Record]) -> dict[str, Any] | None:
    """Return what was tried and chosen, as the report shows it.

    Args:
        schemes: Their names, in the order shown.
        tried: Records of all trials.

    Returns:
        JSON-able; None where nothing was tried.
    """
    if not tried:
        return None
    entries = []
    for scheme in schemes:
        of_scheme = sorted((trial for trial in tried if trial["scheme"] == scheme), key=lambda trial: trial["lr"])
        chosen = choose(of_scheme)["lr"]
        columns = ("lr", "val_accuracy", "val_loss")
        entries.append(
            {
                "scheme": scheme,
                "chosen": chosen,
                "at_edge": chosen in (of_scheme[0]["lr"], of_scheme[-1]["lr"]),
                "tried": [{column: trial[column] for column in columns} for trial in of_scheme],
            }
        )
    return {"seed": TRIAL_SEED, "by_scheme": entries}
