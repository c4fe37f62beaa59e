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
from mpvg.data.sources import ImageData
from mpvg.errors import RunError
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
        data: The images.
        folder: Where finished jobs go.
        device: Where all of them compute, "cpu" or a GPU that they share.
    """

    def __init__(self, count: int, settings: Settings, data: ImageData, folder: RunFolder, *, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.events: Any = context.Queue()
        self.pool = ProcessPoolExecutor(count, context, _start_worker, (settings, data, folder, device, self.events))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()

    def run(self, jobs: Sequence[Job], watch: Callable[[Event], None]) -> None:
        """Do jobs and return when all are done.

        Args:
            jobs: What has not finished yet.
            watch: Called in this process with what happens.

        Raises:
            NonFiniteLossError: A run's loss is no number any more; runs that finished are kept.
            RunError: A worker was killed.
        """
        try:
            with _ctrl_c_ignored():  # workers inherit it: Ctrl-C is the parent's to handle
                pending = {self.pool.submit(_work, job): job for job in jobs}
            while pending:
                done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                while True:
                    try:
                        watch(self.events.get_nowait())
                    except queue.Empty:
                        break
                for future in done:
                    watch(Event(pending.pop(future), 1.0, 0.0, future.result()))
        except BrokenProcessPool as error:
            raise RunError("a worker process was killed, perhaps for lack of memory: try fewer --workers.") from error


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


_worker: tuple[Settings, ImageData, RunFolder, str, Any]


def _start_worker(settings: Settings, data: ImageData, folder: RunFolder, device: str, events: Any) -> None:
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

    do = try_rate if job.trial else train_and_test
    record = do(settings, job, data, report, device=device)
    record |= {"versions": versions(), "hardware": hardware(device)}
    write_atomically(folder.file_of(job), json.dumps(record, indent=1))
    return record
