"""Runs of a comparison over worker processes of one thread each."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from mpvg.compare.folder import RunFolder
from mpvg.compare.settings import Settings
from mpvg.compare.summary import hardware, versions
from mpvg.compare.training import RunError, train_run
from mpvg.data.sources import ImageData
from mpvg.files import write_atomically


class Job(NamedTuple):
    scheme: str
    seed: int


class Event(NamedTuple):
    """How far a run has come, or its end (`record` then holds what was found)."""

    job: Job
    done: float  # part of the run's steps
    loss: float
    record: dict[str, Any] | None


def run_all(
    jobs: Sequence[Job],
    settings: Settings,
    data: ImageData,
    folder: RunFolder,
    *,
    workers: int,
    watch: Callable[[Event], None],
) -> None:
    """Run what has not finished yet; each run is stored by its own process as soon as it ends.

    Args:
        jobs: Runs to do.
        settings: The configuration.
        data: The images.
        folder: Where finished runs go.
        workers: Number of processes; results do not depend on it.
        watch: Called in this process with what happens.

    Raises:
        NonFiniteLossError: A run's loss is no number any more; runs that finished are kept.
        RunError: A worker was killed.
    """
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (settings, data, folder, events))
    try:
        with _ctrl_c_ignored():  # workers inherit it: Ctrl-C is the parent's to handle
            pending = {pool.submit(_work, job) for job in jobs}
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            while True:
                try:
                    watch(events.get_nowait())
                except queue.Empty:
                    break
            for record in (future.result() for future in done):
                watch(Event(Job(record["scheme"], record["seed"]), 1.0, record["loss"], record))
    except BrokenProcessPool as error:
        raise RunError("a worker process was killed, perhaps for lack of memory: try fewer --workers.") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where Python lets no one set a handler
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


_worker: tuple[Settings, ImageData, RunFolder, Any]


def _start_worker(settings: Settings, data: ImageData, folder: RunFolder, events: Any) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker = (settings, data, folder, events)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # a parent that was killed can tell its workers nothing
    os._exit(1)


def _work(job: Job) -> dict[str, Any]:
    settings, data, folder, events = _worker
    record = train_run(
        settings, job.scheme, job.seed, data, lambda done, loss: events.put(Event(job, done, loss, None))
    )
    record |= {"versions": versions(), "hardware": hardware()}
    write_atomically(folder.run_file(job.scheme, job.seed), json.dumps(record, indent=1))
    return record
