"""`mpvg fit --lr A,B`: the same training at several learning rates, of which the validation split chooses one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from mpvg.console import say
from mpvg.errors import NonFiniteLossError, UserError
from mpvg.files import as_csv, write_atomically
from mpvg.out import locked


class Fitted(NamedTuple):
    """What a training left.

    Args:
        checkpoint: Of the epoch that counts; None where none was validated.
        score: On the validation split, of that epoch; None where no epoch was chosen by it.
    """

    checkpoint: Path | None
    score: float | None


def sweep(rates: Sequence[float], fit: Callable[[float, Path], Fitted], out: Path, console: Console) -> None:
    """Train at each rate, in a folder of its own, and copy the best one's checkpoints beside these folders.

    Args:
        rates: Peak learning rates.
        fit: Trains at a rate, in a folder; where it had finished there, it only says so.
        out: The folder of all.
        console: Where to say what was found.

    Raises:
        UserError: The folder holds a training of one rate.
        NonFiniteLossError: At every rate the loss became NaN or infinite.
    """
    found: dict[float, Fitted] = {}
    with locked(out):
        if (out / "config.json").exists():
            raise UserError(f"--out {out} holds a training at one learning rate: name another folder.")
        for rate in sorted(rates):
            say(console, f"Learning rate {rate:g}:")
            try:
                found[rate] = fit(rate, out / f"lr-{rate:g}")
            except NonFiniteLossError as error:
                say(console, str(error))
                found[rate] = Fitted(None, None)
        rows = [{"lr": rate, "val_score": one.score} for rate, one in found.items()]
        write_atomically(out / "lr.csv", as_csv(rows))
        scores = {rate: one.score for rate, one in found.items() if one.score is not None}
        if not scores:
            tried = ", ".join(f"{rate:g}" for rate in found)
            raise NonFiniteLossError(f"the loss is no number with any --lr tried ({tried}): try lower ones.")
        best = max(scores, key=lambda rate: (scores[rate], -rate))
        checkpoint = found[best].checkpoint
        assert checkpoint is not None
        for file in (checkpoint, checkpoint.with_suffix(".safetensors")):
            write_atomically(out / file.name, file.read_bytes())
    for rate, one in found.items():
        score = "its loss was no number" if one.score is None else f"validation {100 * one.score:.2f} %"
        say(console, f"lr {rate:g}: {score}{', the best' if rate == best else ''}")
    edge = best in (min(found), max(found))
    hint = "; it lies at the edge of those tried, so try further ones" if edge else ""
    say(console, f"Learning rate {best:g} was chosen on the validation split{hint}. It is in {out / checkpoint.name}.")
