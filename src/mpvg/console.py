"""Lines and bars for people, in a terminal or a pipe."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column


def say(console: Console, text: str) -> None:
    """Print a line as it is; one that is not for a terminal is not broken."""
    console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def progress_bar(console: Console, unit: str, *, auto_refresh: bool = True) -> Progress:
    """Return a bar that counts `unit` and shows the time that is left; outside a terminal it shows nothing."""
    return Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=5)),
        TextColumn(f"{unit},"),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn("left"),
        console=console,
        auto_refresh=auto_refresh,
        disable=not console.is_terminal,
    )
