"""What a comparison would do and about how long it would take: `mpvg compare --dry-run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mpvg.compare.folder import RunFolder
from mpvg.compare.inputs import load_inputs, one_and_the_same
from mpvg.compare.rates import Job, chosen_rates, trials
from mpvg.compare.settings import Settings
from mpvg.compare.training import Length, build_model, evaluate
from mpvg.data.holdout import split_validation
from mpvg.data.remarks import remarks
from mpvg.data.splits import LabelledSet
from mpvg.train.optimizer import build_optimizer
from mpvg.train.steps import take_step

_REPETITIONS = 5


def plan(
    settings: Settings,
    schemes: Sequence[str],
    *,
    seeds: int,
    out: Path,
    workers: int,
    device: str = "cpu",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Say what `compare` would do with the same arguments; nothing is written.

    Args:
        settings: Data, model and training.
        schemes: Names or texts of schemes.
        seeds: Number of seeds.
        out: The folder, whose finished runs are not done again.
        workers: Processes.
        device: Where they would compute.
        overwrite: Whether the runs in a folder of another configuration would go.

    Returns:
        Each trial and run with its estimated seconds, and the seconds of all that is left to do, JSON-able.

    Raises:
        UserError: Bad input.
    """
    built, data = load_inputs(settings, schemes)
    names = list(built)
    folder = RunFolder(out, settings, data)
    if not overwrite:
        folder.refuse_changes()
    anew = bool(folder.changes())
    estimates = {name: seconds_of(settings, name, data, device=device) for name in names}
    tried = trials(names, settings)
    finished = [record for record in map(folder.finished, tried) if record is not None and not anew]
    rates = chosen_rates(names, settings, finished) if len(finished) == len(tried) else dict.fromkeys(names)
    jobs = tried + [Job(name, seed, rates[name]) for seed in range(seeds) for name in names]
    runs = [
        {
            **job._asdict(),
            "finished": not anew and job.lr is not None and folder.finished(job) is not None,
            "seconds": round(estimates[job.scheme], 1),
        }
        for job in jobs
    ]
    left = [estimates[job.scheme] for job, run in zip(jobs, runs, strict=True) if not run["finished"]]
    return {
        "model": settings.model,
        "data": data.name,
        "note": " ".join([data.note, *remarks(data), *one_and_the_same(settings.model, built)]),
        "settings": settings.as_dict(),
        "device": device,
        "workers": workers,
        "runs": runs,
        "seconds": round(_seconds_of_all(left, workers), 1),
    }


def seconds_of(settings: Settings, scheme: str, data: LabelledSet, *, device: str) -> float:
    """Return about how many seconds one run of a scheme takes in one worker, from a few of its steps.

    Args:
        settings: The configuration.
        scheme: The scheme.
        data: The labelled set.
        device: Where the workers would compute.

    Returns:
        Seconds of training, of reading the validation curve and of the test.
    """
    train, val = split_validation(data, fraction=settings.val_fraction, seed=0)
    schedule = Length.of(settings, len(train))
    recipe = replace(settings.recipe, lr=1e-6)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    try:
        built = build_model(settings, scheme, data, train, device=device)
        model, feed = built.model, built.feed
        optimizer = build_optimizer(model, recipe)
        batch = next(feed.batches(feed.place(train), batch_size=schedule.batch_size, seed=0, epoch=0))
        inputs, targets = feed.prepare(batch, seed=0, epoch=0)
        a_step = _timed(partial(take_step, model, optimizer, inputs, targets, recipe))
        read = next(iter(feed.readings(feed.place(data.test))))
        a_sample = _timed(lambda: evaluate(model, [read])) / len(read[1])
    finally:
        torch.set_num_threads(threads)
    evaluated = len(schedule.curve_steps(len(val))) * len(val) + 2 * len(data.test)
    return schedule.steps * a_step + evaluated * a_sample


def _timed(do: Callable[[], object]) -> float:
    do()
    seconds = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def _seconds_of_all(seconds: Sequence[float], workers: int) -> float:
    """Return when the last of several workers ends that each take the next job when they are free."""
    busy = [0.0] * workers
    for job in seconds:
        busy[busy.index(min(busy))] += job
    return max(busy)
