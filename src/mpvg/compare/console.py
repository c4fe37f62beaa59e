"""What a comparison says in the terminal: progress while it runs, the table at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mpvg.compare.runner import Event, Job


class Watcher:
    """Shows the progress of `total` runs: a live bar in a terminal, a line a run elsewhere."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self.finished = 0
        self.done: dict[Job, float] = {}
        self.started = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("runs,"),
            TimeElapsedColumn(),
            TextColumn("so far,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("comparing", total=total)

    @contextmanager
    def live(self) -> Iterator[Watcher]:
        with self.progress:
            yield self

    def __call__(self, event: Event) -> None:
        self.done[event.job] = max(event.done, self.done.get(event.job, 0.0))
        done = sum(self.done.values())
        description = f"{event.job.scheme}, seed {event.job.seed}"
        if event.record is None:
            self.progress.update(
                self.task, completed=round(done, 2), description=f"{description}: loss {event.loss:.3f}"
            )
            return
        self.finished += 1
        elapsed = time.monotonic() - self.started
        left = elapsed / done * (self.total - done)
        self.progress.update(self.task, completed=round(done, 2))
        self.console.print(
            f"[{self.finished:>{len(str(self.total))}}/{self.total}] {description}: "
            f"{100 * event.record['accuracy']:.2f} % in {event.record['seconds']:.0f} s"
            + (f", about {_duration(left)} left" if self.finished < self.total else ""),
            highlight=False,
            markup=False,
        )


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print the table and what must be known to read it."""
    first = summary["schemes"][0]["scheme"]
    table = Table(title=escape(_title(summary)), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("scheme")
    table.add_column("accuracy %", justify="right")
    table.add_column(f"minus {first}", justify="right")
    table.add_column("in words")
    table.add_column("rise*", justify="right")
    for entry in summary["schemes"]:
        difference = entry["difference"]
        table.add_row(
            escape(entry["scheme"]),
            _interval(entry),
            "" if difference is None else _interval(difference, sign="+"),
            "" if difference is None else difference["verdict"].removesuffix(f" than {first}"),
            f"{100 * entry['rise']:+.2f}",
        )
    console.print(table)
    for note in summary["notes"]:
        console.print(f"- {note}", highlight=False, markup=False)
    console.print(
        "* Points of validation accuracy gained over the last fifth of the steps; converged means less than 0.5.",
        highlight=False,
        markup=False,
    )
    late = [entry["scheme"] for entry in summary["schemes"] if not entry["converged"]]
    if late:
        console.print(f"! Not converged: {', '.join(late)}. Raise --epochs.", highlight=False, markup=False)


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
