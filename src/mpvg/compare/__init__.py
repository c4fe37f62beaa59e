"""Position schemes side by side on one set of images: `mpvg compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from rich.console import Console

from mpvg.compare.console import Watcher, print_summary
from mpvg.compare.folder import RunFolder, locked
from mpvg.compare.runner import Job, run_all
from mpvg.compare.settings import Settings
from mpvg.compare.summary import results_csv, summarise
from mpvg.compare.training import build_model
from mpvg.data.sources import ImageData, load_data
from mpvg.errors import UserError, nearest
from mpvg.files import write_atomically
from mpvg.report import write_compare_report
from mpvg.scheme import PositionScheme


def compare(
    settings: Settings,
    schemes: Sequence[str],
    *,
    seeds: int,
    out: Path,
    workers: int,
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
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a file or pipe has no width to fit
    names = [_canonical(scheme) for scheme in schemes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--schemes names {twice!r} twice: leave one out.")
    _check_model(settings.model)
    data = load_data(settings.data, img_size=settings.img_size)
    for name in names:
        _check_fit(settings, name, data)
    with locked(out):
        folder = RunFolder(out, settings, data, overwrite=overwrite)
        jobs = [Job(name, seed) for seed in range(seeds) for name in names]
        todo = [job for job in jobs if folder.finished(*job) is None]
        console.print(
            f"{settings.model} on {data.name}: {len(names)} schemes x {seeds} seeds, --epochs {settings.epochs}; "
            f"{len(jobs) - len(todo)} of {len(jobs)} runs had finished in {out}.",
            highlight=False,
            markup=False,
        )
        if todo:
            with Watcher(console, len(todo)).live() as watch:
                run_all(todo, settings, data, folder, workers=min(workers, len(todo)), watch=watch)

        found = [folder.finished(name, seed) for name in names for seed in range(seeds)]
        finished = [run for run in found if run is not None]
        assert len(finished) == len(jobs)
        summary: dict[str, Any] = summarise(settings, data, names, finished, command)
        write_atomically(out / "results.csv", results_csv(settings, finished))
        write_atomically(out / "summary.json", json.dumps(summary, indent=1))
        write_compare_report(summary, out / "report.html")
    print_summary(console, summary)
    console.print(f"Report: {out / 'report.html'}, rows: {out / 'results.csv'}", highlight=False, markup=False)
    return summary


def _canonical(scheme: str) -> str:
    try:
        return str(PositionScheme.parse(scheme.strip()))
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_model(name: str) -> None:
    known = timm.list_models("mpvg_*")
    if name not in known:
        raise UserError(f"--model {name!r} is unknown{nearest(name, known)}: use one of {', '.join(known)}.")


def _check_fit(settings: Settings, scheme: str, data: ImageData) -> None:
    try:
        model = build_model(settings, scheme, data, device="meta")
    except ValueError as error:
        raise UserError(str(error)) from error
    (height, width), (down, across) = data.image_size, model.patch_embed.patch_size
    if height % down or width % across:
        raise UserError(
            f"{data.name} has images of {height} x {width} pixels, which {settings.model} cannot cut into patches of "
            f"{down} x {across}: resize them with --img-size {max(down, round(max(height, width) / down) * down)}, say."
        )
