"""The peak memory of a piece of work, in a fresh process: python -m mpvg.bench.memory TASK CONTESTANT THREADS"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch

import mpvg
from mpvg.bench.work import Contestant, Task
from mpvg.errors import RunError

assert mpvg  # registers the models
_STEPS = 3
_STATUS = Path("/proc/self/status")
_FRUGAL = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # tensors go back to the system at once: the peak is what was alive


def peak_mib(task: Task, contestant: Contestant) -> float | None:
    """Measure the peak memory of a model at work, in a fresh process.

    Args:
        task: What it does.
        contestant: The model.

    Returns:
        What the process needs beyond Python and its libraries, weights and optimiser with it, in MiB; in mode "compile"
        what the compiler leaves behind counts too, and in all what libraries load at their first step. None where the
        system does not tell (it is read from Linux's /proc), and for CUDA graphs, whose memory is not counted.

    Raises:
        RunError: The process failed.
    """
    if task.graphs or (task.device == "cpu" and not _STATUS.exists()):
        return None
    command = [sys.executable, "-m", "mpvg.bench.memory"]
    words = [json.dumps(asdict(task)), json.dumps(asdict(contestant)), str(torch.get_num_threads())]
    environment = {**os.environ, **_FRUGAL}
    done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}, killed for want of memory?"])[-1]
        raise RunError(f"the peak memory of {contestant.name} could not be measured: {reason}")
    return float(done.stdout.split()[-1])


def _peak(task: Task, contestant: Contestant) -> float:
    """Return the peak of this process in MiB, at work beyond what it needed before."""
    if task.device != "cpu":
        work = task.prepare(contestant)
        work()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(_STEPS):
            work()
        return torch.cuda.max_memory_allocated() / 2**20
    before: list[float] = []
    work = task.prepare(contestant, starting=lambda: before.append(_of_status("VmRSS")))
    work()
    gc.collect()
    with suppress(OSError):  # some systems do not allow it
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: building and compiling do not count
    for _ in range(_STEPS):
        work()
    return _of_status("VmHWM") - before[0]


def _of_status(key: str) -> float:
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) / 2**10


def _main() -> None:
    task, contestant, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    fields = json.loads(task)
    fields["size"] = fields["size"] and tuple(fields["size"])
    print(_peak(Task(**fields), Contestant(**json.loads(contestant))))


if __name__ == "__main__":
    _main()
