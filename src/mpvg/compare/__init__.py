"""Position schemes side by side on one set of images: `mpvg compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mpvg.compare.console import Watcher, print_summary
from mpvg.compare.folder import RunFolder
from mpvg.compare.inputs import load_inputs, one_and_the_same
from mpvg.compare.rates import Job, chosen_rates, describe_trials, trials
from mpvg.compare.runner import Workers
from mpvg.compare.settings import Settings
from mpvg.compare.summary import results_csv, summarise
from mpvg.console import say
from mpvg.data.remarks import remarks
from mpvg.files import write_atomically
from mpvg.out import locked
from mpvg.report import write_compare_report


def compare(
    settings: Settings,
    schemes: Sequence[str],
    *,
    seeds: int,
    out: Path,
    workers: int,
    device: str = "cpu",
    overwrite: bool = False,
    command: str = "",
    console: Console | None = None,
) -> dict[str, Any]:
    """Train and test each scheme with each seed, and write what was found.

    Args:
        settings: Data, model and training, the same for all runs.
        schemes: Names or texts of schemes; differences are to the first.
        seeds: Number of seeds, from 0.
        out: Folder for results.csv, summary.json, report.html and the runs; finished runs in it are kept.
        workers: Processes of one thread each; the numbers do not depend on it.
        device: Where the workers compute: "cpu", or a GPU that they share.
        overwrite: Begin anew where `out` holds another configuration.
        command: What the report names as the command that reproduces it.
        console: Where to show progress and the table; None for standard output.

    Returns:
        The summary, as in summary.json.

    Raises:
        UserError: Bad input.
        NonFiniteLossError: A loss turned NaN; finished runs are kept.
    """
    console = console or Console()
    built, data = load_inputs(settings, schemes)
    names = list(built)
    tried = trials(names, settings)
    with locked(out):
        folder = RunFolder(out, settings, data)
        folder.make(overwrite=overwrite)
        known = [*remarks(data), *one_and_the_same(settings.model, built)]
        for line in (f"{settings.model} on {data.name}. {data.note}", *known):
            say(console, line)
        workers = min(workers, len(names) * max(seeds, len(settings.lrs)))
        with Workers(workers, settings, data, folder, device=device) as pool, Watcher(console).live() as watch:
            trial_records = _complete(tried, pool, folder, watch, later=len(names) * seeds)
            rates = chosen_rates(names, settings, trial_records)
            runs = _complete(
                [Job(name, seed, rates[name]) for seed in range(seeds) for name in names], pool, folder, watch
            )
        runs.sort(key=lambda run: (names.index(run["scheme"]), run["seed"]))
        summary = summarise(settings, data, names, runs, describe_trials(names, trial_records), command)
        write_atomically(out / "results.csv", results_csv(settings, runs))
        write_atomically(out / "summary.json", json.dumps(summary, indent=1))
        write_compare_report(summary, out / "report.html")
    print_summary(console, summary)
    say(console, f"Report: {out / 'report.html'}, rows: {out / 'results.csv'}")
    return summary


def _complete(
    jobs: Sequence[Job], pool: Workers, folder: RunFolder, watch: Watcher, *, later: int = 0
) -> list[dict[str, Any]]:
    """Do what has not finished of `jobs` and return the records of all; `later` more jobs follow."""
    todo = [job for job in jobs if folder.finished(job) is None]
    if jobs:
        what = "trials of learning rates" if jobs[0].trial else "runs"
        say(watch.console, f"{len(jobs) - len(todo)} of {len(jobs)} {what} had finished in {folder.path}.")
    watch.expect(len(todo) + later)
    pool.run(todo, watch)
    found = [folder.finished(job) for job in jobs]
    records = [record for record in found if record is not None]
    assert len(records) == len(jobs)
    return records
