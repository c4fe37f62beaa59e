"""Jobs of a comparison over worker processes of one thread each."""

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
from mpvg.compare.rates import Job
from mpvg.compare.settings import Settings
from mpvg.compare.summary import hardware, versions
from mpvg.compare.training import train_and_test, try_rate
from mpvg.data.splits import LabelledSet
from mpvg.errors import NonFiniteLossError, RunError
from mpvg.files import write_atomically


class Event(NamedTuple):
    """How far a job has come, or its end (`record` then holds what was found)."""

    job: Job
    done: float  # part of the job's steps
    loss: float
    record: dict[str, Any] | None


class Workers:
    """Processes that do jobs; each job is stored by its own process as soon as it ends.

    Args:
        count: Number of processes; results do not depend on it.
        settings: The configuration.
        data: The labelled set.
        folder: Where finished jobs go.
        device: Where all of them compute, "cpu" or a GPU that they share.
    """

    def __init__(self, count: int, settings: Settings, data: LabelledSet, folder: RunFolder, *, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.others = set(multiprocessing.active_children())
        self.events: Any = context.Queue()
        self.pool = ProcessPoolExecutor(count, context, _start_worker, (settings, data, folder, device, self.events))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        own = set(multiprocessing.active_children()) - self.others
        for process in own:
            process.terminate()
        for process in own:
            process.join()

    def run(self, jobs: Sequence[Job], watch: Callable[[Event], None]) -> None:
        """Do jobs and return when all are done.

        Args:
            jobs: What has not finished yet.
            watch: Called in this process with what happens.

        Raises:
            NonFiniteLossError: A run's loss is no number any more; the others were done all the same.
            RunError: A worker was killed.
        """
        failed: list[NonFiniteLossError] = []
        try:
            with _ctrl_c_held_back():  # workers inherit it: Ctrl-C is the parent's to handle
                pending = {self.pool.submit(_work, job): job for job in jobs}
            while pending:
                done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                while True:
                    try:
                        watch(self.events.get_nowait())
                    except queue.Empty:
                        break
                for future in done:
                    job = pending.pop(future)
                    try:
                        watch(Event(job, 1.0, 0.0, future.result()))
                    except NonFiniteLossError as error:
                        failed.append(error)
        except BrokenProcessPool as error:
            raise RunError("a worker process was killed, perhaps for lack of memory: try fewer --workers.") from error
        if failed:
            raise NonFiniteLossError(f"{failed[0]} {len(jobs) - len(failed)} of {len(jobs)} runs ended well.")


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block; processes that start in it never see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: tuple[Settings, LabelledSet, RunFolder, str, Any]


def _start_worker(settings: Settings, data: LabelledSet, folder: RunFolder, device: str, events: Any) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker = (settings, data, folder, device, events)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # a parent that was killed can tell its workers nothing
    os._exit(1)


def _work(job: Job) -> dict[str, Any]:
    settings, data, folder, device, events = _worker

    def report(done: float, loss: float) -> None:
        events.put(Event(job, done, loss, None))

    if job.trial:
        record = try_rate(settings, job, data, report, device=device)
    else:
        record = train_and_test(settings, job, data, report, device=device, weights=folder.weights_of(job))
    record |= {"versions": versions(), "hardware": hardware(device)}
    write_atomically(folder.file_of(job), json.dumps(record, indent=1))
    return record
