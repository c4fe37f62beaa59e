"""A heat: one architecture's variants and the model that they are measured against, in turn and in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import timm
import torch

from mpvg.bench.memory import peak_mib
from mpvg.bench.turns import Ratio, gpu_clock, is_quiet, keep_memory, processor_clock, ratio, take_turns
from mpvg.bench.work import Contestant, Task
from mpvg.errors import RunError
from mpvg.machine import machine_name

KEY = (
    "hardware", "device", "threads", "dtype", "mode", "work",
    "model", "scheme", "variant", "size", "against", "batch",
)  # fmt: skip
COLUMNS = (
    *KEY, "ratio", "low", "high", "milliseconds", "milliseconds_against", "rounds",
    "noise", "noise_low", "noise_high", "peak_mib", "peak_mib_against", "versions",
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
        return f"{self.against.name}, batch {task.batch}, {task.mode} {task.kind}, {task.dtype}, {task.device}"


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
        problem: Why it could not be measured, or "".
    """

    heat: Heat
    rounds: int
    noise: Ratio
    milliseconds: tuple[float, ...]
    ratios: tuple[Ratio, ...]
    peaks: tuple[float | None, ...]
    problem: str = ""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row a contestant, as CSV files under results/bench hold them; in a self-test that is `against`."""
        task, against = self.heat.task, self.heat.against
        ratios: tuple[Ratio, ...] = self.ratios or (self.noise,) * is_quiet(self.noise)
        for index, contestant in enumerate(self.heat.contestants or (against,)):
            found = ratios[index] if ratios else None
            place = index + bool(self.heat.contestants)
            yield {
                "hardware": machine_name(task.device),
                "device": task.device.partition(":")[0],
                "threads": torch.get_num_threads(),
                "dtype": task.dtype,
                "mode": task.mode + (", graphs" if task.graphs else ""),
                "work": task.kind,
                "model": contestant.model,
                "scheme": contestant.scheme or "",
                "variant": "folded" if contestant.folded else "unfolded",
                "size": "x".join(map(str, task.size)) if task.size else "",
                "against": against.name,
                "batch": task.batch,
                "ratio": _rounded(found and found.median),
                "low": _rounded(found and found.low),
                "high": _rounded(found and found.high),
                "milliseconds": _rounded(self.milliseconds[place]),
                "milliseconds_against": _rounded(self.milliseconds[0]),
                "rounds": self.rounds,
                "noise": _rounded(self.noise.median),
                "noise_low": _rounded(self.noise.low),
                "noise_high": _rounded(self.noise.high),
                "peak_mib": _rounded(self.peaks[place]),
                "peak_mib_against": _rounded(self.peaks[0]),
                "versions": versions(task.mode),
            }


def measure(
    heat: Heat,
    *,
    rounds: int,
    seconds: float,
    builds: int = 1,
    memory: bool = False,
    after_round: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Run a heat.

    Args:
        heat: What to measure.
        rounds: At most so many rounds.
        seconds: Begin no round after so many seconds of them, once there are rounds enough for an interval.
        builds: Build all models anew so many times on the way.
        memory: Measure peak memory too, in fresh processes.
        after_round: Called between rounds with their number so far.

    Returns:
        Times, ratios and memory; no ratios where the machine was too noisy to tell.
    """
    keep_memory()
    runners = (heat.against, heat.against, *heat.contestants)
    first, second, *others = take_turns(
        [partial(heat.task.prepare, runner) for runner in runners],
        processor_clock if heat.task.device == "cpu" else gpu_clock,
        rounds=rounds,
        seconds=seconds,
        builds=builds,
        after_round=after_round,
        before_build=forget_compiled,
    )
    noise = ratio(second, first)
    peaks, problem = _peaks(heat) if memory else ((None,) * len(runners[1:]), "")
    return Measured(
        heat,
        len(first),
        noise,
        tuple(1e3 * median(times) for times in ([*first, *second], *others)),
        tuple(ratio(times, first, second) for times in others) if is_quiet(noise) else (),
        peaks,
        problem,
    )


def forget_compiled() -> None:
    """Begin with an empty cache of torch.compile; running out of its entries is an error, and not quietly eager."""
    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _peaks(heat: Heat) -> tuple[tuple[float | None, ...], str]:
    """Return the peak memory of every model, or none and why: times that were measured are not lost."""
    everyone = (heat.against, *heat.contestants)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the fresh processes need it
    try:
        return tuple(peak_mib(heat.task, each) for each in everyone), ""
    except RunError as error:
        return (None,) * len(everyone), str(error)


def versions(mode: str) -> str:
    """Return the versions of the libraries that did the work."""
    found = [f"torch {torch.__version__}", f"timm {timm.__version__}"]
    if mode == "onnx":
        import onnxruntime

        found.append(f"onnxruntime {onnxruntime.__version__}")
    return ", ".join(found)


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.5g}")


def merged(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return old rows and new ones; a new measurement of the same thing replaces the old one."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row.get(column, "")) for column in KEY)

    renewed = {key(row) for row in new}
    return [row for row in old if key(row) not in renewed] + list(new)
