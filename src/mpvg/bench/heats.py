"""A heat: one architecture's variants and the model that they are measured against, in turn and in one process."""

from __future__ import annotations

import gc
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch

from mpvg.bench.memory import peak_mib
from mpvg.bench.turns import Ratio, gpu_clock, is_quiet, processor_clock, ratio, take_turns
from mpvg.bench.work import Contestant, Task

_KEY = (
    "hardware", "device", "threads", "dtype", "mode", "work",
    "model", "scheme", "variant", "size", "against", "batch",
)  # fmt: skip


@dataclass(frozen=True)
class Heat:
    """What is measured together.

    Args:
        task: What every contestant does.
        against: The model that the others are measured against; it takes two turns a round.
        contestants: The others.
    """

    task: Task
    against: Contestant
    contestants: tuple[Contestant, ...]

    def __str__(self) -> str:
        task = self.task
        return f"{self.against.label}, batch {task.batch}, {task.mode} {task.kind}, {task.dtype}, {task.device}"


@dataclass(frozen=True)
class Measured:
    """What came of a heat.

    Args:
        heat: The heat.
        rounds: How many rounds were run.
        noise: The second turn of `heat.against` in a round beside the first: what 1.00 looks like on this machine.
        milliseconds: Median time of `heat.against`, then of each contestant.
        ratios: Of each contestant; empty where the machine was too noisy.
        peaks: Peak memory in MiB of `heat.against`, then of each contestant; None where it was not measured.
    """

    heat: Heat
    rounds: int
    noise: Ratio
    milliseconds: tuple[float, ...]
    ratios: tuple[Ratio, ...]
    peaks: tuple[float | None, ...]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row a contestant, as CSV files under results/bench hold them."""
        task, against = self.heat.task, self.heat.against
        for index, contestant in enumerate(self.heat.contestants, start=1):
            found = self.ratios[index - 1] if self.ratios else None
            yield {
                "hardware": hardware(task.device),
                "device": task.device.partition(":")[0],
                "threads": torch.get_num_threads(),
                "dtype": task.dtype,
                "mode": task.mode + (", graphs" if task.graphs else ""),
                "work": task.kind,
                "model": contestant.model,
                "scheme": contestant.scheme or "",
                "variant": "folded" if contestant.folded else "unfolded",
                "size": "x".join(map(str, task.size)) if task.size else "",
                "against": against.label,
                "batch": task.batch,
                "ratio": _rounded(found and found.median),
                "low": _rounded(found and found.low),
                "high": _rounded(found and found.high),
                "milliseconds": _rounded(self.milliseconds[index]),
                "milliseconds_against": _rounded(self.milliseconds[0]),
                "rounds": self.rounds,
                "noise": _rounded(self.noise.median),
                "noise_low": _rounded(self.noise.low),
                "noise_high": _rounded(self.noise.high),
                "peak_mib": _rounded(self.peaks[index]),
                "peak_mib_against": _rounded(self.peaks[0]),
                "versions": versions(task.mode),
            }


def measure(
    heat: Heat, *, rounds: int, seconds: float, memory: bool, after_round: Callable[[int], None] = lambda done: None
) -> Measured:
    """Run a heat.

    Args:
        heat: What to measure.
        rounds: At most so many rounds.
        seconds: Begin no round after so many seconds, once there are rounds enough for an interval.
        memory: Measure peak memory too, in fresh processes.
        after_round: Called between rounds with their number so far.

    Returns:
        Times, ratios and memory; no ratios where the machine was too noisy to tell.
    """
    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    clock = processor_clock if heat.task.device == "cpu" else gpu_clock
    works = [heat.task.prepare(contestant) for contestant in (heat.against, heat.against, *heat.contestants)]
    first, second, *others = take_turns(works, clock, rounds=rounds, seconds=seconds, after_round=after_round)
    del works
    gc.collect()
    noise = ratio(second, first)
    return Measured(
        heat,
        len(first),
        noise,
        tuple(1e3 * median(times) for times in ([*first, *second], *others)),
        tuple(ratio(times, first, second) for times in others) if is_quiet(noise) else (),
        tuple(peak_mib(heat.task, each) if memory else None for each in (heat.against, *heat.contestants)),
    )


def hardware(device: str) -> str:
    """Return what the numbers were measured on."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{' '.join(name.split())}, {os.cpu_count()} cores"


def versions(mode: str) -> str:
    """Return the versions of the libraries that did the work."""
    found = [f"torch {torch.__version__}", f"timm {timm.__version__}"]
    if mode == "onnx":
        import onnxruntime

        found.append(f"onnxruntime {onnxruntime.__version__}")
    return ", ".join(found)


def _rounded(number: float | None) -> float | str:
    return "" if number is None else float(f"{number:.5g}")


def merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return old rows and new ones; a new measurement of the same thing replaces the old one."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row.get(column, "")) for column in _KEY)

    renewed = {key(row) for row in new}
    return [row for row in old if key(row) not in renewed] + list(new)
