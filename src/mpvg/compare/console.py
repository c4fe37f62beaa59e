"""What a comparison says in the terminal: progress while it runs, the table at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mpvg.compare.rates import Job
from mpvg.compare.runner import Event
from mpvg.console import progress_bar, say


class Watcher:
    """Shows the progress of jobs: a live bar in a terminal, a line a job elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = 0
        self.finished = 0
        self.done: dict[Job, float] = {}
        self.started = time.monotonic()
        self.progress = progress_bar(console, "runs")
        self.task = self.progress.add_task("comparing", total=None)

    @contextmanager
    def live(self) -> Iterator[Watcher]:
        with self.progress:
            yield self

    def expect(self, jobs: int) -> None:
        """Expect so many jobs more."""
        self.total = self.finished + jobs
        self.progress.update(self.task, total=self.total)

    def __call__(self, event: Event) -> None:
        self.done[event.job] = max(event.done, self.done.get(event.job, 0.0))
        done = sum(self.done.values())
        if event.record is None:
            self.progress.update(self.task, completed=round(done, 2), description=f"{event.job}: loss {event.loss:.3f}")
            return
        self.finished += 1
        elapsed = time.monotonic() - self.started
        left = elapsed / done * (self.total - done)
        self.progress.update(self.task, completed=round(done, 2))
        say(
            self.console,
            f"[{self.finished:>{len(str(self.total))}}/{self.total}] {event.job}: "
            f"{_outcome(event.record)} in {event.record['seconds']:.0f} s"
            + (f", about {_duration(left)} left" if self.finished < self.total else ""),
        )


def _outcome(record: dict[str, Any]) -> str:
    if not record["trial"]:
        return f"{100 * record['accuracy']:.2f} %"
    accuracy = record["val_accuracy"]
    return "diverged" if accuracy is None else f"{100 * accuracy:.2f} % on validation"


def print_plan(console: Console, plan: dict[str, Any]) -> None:
    """Print what a comparison would do."""
    say(console, f"{plan['model']} on {plan['data']}. {plan['note']}")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "scheme", "seed", "lr", "seconds"):
        table.add_column(heading, justify="left" if heading in ("", "scheme") else "right")
    for run in plan["runs"]:
        rate = "to be chosen" if run["lr"] is None else f"{run['lr']:g}"
        seconds = "finished" if run["finished"] else f"{run['seconds']:.1f}"
        table.add_row("trial" if run["trial"] else "run", escape(run["scheme"]), str(run["seed"]), rate, seconds)
    console.print(table)
    left = sum(not run["finished"] for run in plan["runs"])
    say(
        console,
        f"{left} to do, about {_duration(plan['seconds'])} with {plan['workers']} workers on {plan['device']} (their "
        "start not counted). Nothing was written: leave out --dry-run to begin.",
    )


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print the table and what must be known to read it."""
    first = summary["schemes"][0]["scheme"]
    say(console, _title(summary))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("scheme")
    table.add_column("accuracy %", justify="right")
    table.add_column(f"minus {first}", justify="right")
    table.add_column("in words")
    table.add_column("rise*", justify="right")
    shuffles = all(entry["shuffled"] is not None for entry in summary["schemes"])
    if shuffles:
        table.add_column("shuffled %", justify="right")
    for entry in summary["schemes"]:
        difference = entry["difference"]
        table.add_row(
            escape(entry["scheme"]),
            _interval(entry),
            "" if difference is None else _interval(difference, sign="+"),
            "" if difference is None else difference["verdict"].removesuffix(f" than {first}"),
            f"{100 * entry['rise']:+.2f}",
            *([f"{100 * entry['shuffled']:.2f}"] if shuffles else []),
        )
    console.print(table)
    for note in summary["notes"]:
        say(console, f"- {note}")
    say(
        console,
        "* Points of validation accuracy gained over the last fifth of the steps; converged means less than 0.5.",
    )
    late = [entry["scheme"] for entry in summary["schemes"] if not entry["converged"]]
    if late:
        say(console, f"! Not converged: {', '.join(late)}. Raise --epochs.")


def _title(summary: dict[str, Any]) -> str:
    seeds = len(summary["schemes"][0]["runs"])
    return f"{summary['model']} on {summary['data']['name']}: test accuracy, {seeds} seed{'s' if seeds > 1 else ''}"


def _interval(interval: dict[str, Any], *, sign: str = "") -> str:
    mean = f"{100 * interval['mean']:{sign}.2f}"
    if interval["low"] is None:
        return mean
    return f"{mean} ({100 * interval['low']:{sign}.2f}, {100 * interval['high']:{sign}.2f})"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
