"""What recording costs beside plain inference: DeiT-Ti at 224 pixels, batches of 32, interleaved A B A B.

    python benchmarks/analysis_overhead.py [--model NAME] [--batch 32] [--rounds 30]

A is `model(batch)`, B is `Recorder.run(batch)` with all default statistics on. The first line sets A beside a second A:
where that ratio is far from 1.00 the machine is too noisy for the second line to mean anything.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from math import exp, log
from statistics import median

import timm
import torch

import mpvg
from mpvg.analysis.record import REPLICATES, Recorder
from mpvg.stats import student_interval

assert mpvg  # registers the models


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(a: Callable[[], object], b: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Return the times of a and b, taken in turn, after one round that is not counted."""
    times = [(seconds(a), seconds(b)) for _ in range(rounds + 1)][1:]
    return [pair[0] for pair in times], [pair[1] for pair in times]


def tell(what: str, a: Sequence[float], b: Sequence[float]) -> None:
    mean, low, high = student_interval([log(y / x) for x, y in zip(a, b, strict=True)])
    assert low is not None
    assert high is not None
    print(
        f"{what}: medians {1e3 * median(a):.1f} and {1e3 * median(b):.1f} ms, ratio {exp(mean):.3f} "
        f"(95 % interval {exp(low):.3f} to {exp(high):.3f}, {len(a)} rounds)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mpvg_deit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    model = timm.create_model(arguments.model).eval()
    images = torch.randn(arguments.batch, *model.default_cfg["input_size"])

    @torch.inference_mode()
    def plain() -> torch.Tensor:
        output: torch.Tensor = model(images)
        return output

    recorder = Recorder(model, shown=range(4))

    def recorded() -> None:
        with recorder:
            recorder.run(images)

    threads = torch.get_num_threads()
    print(
        f"{arguments.model}, batch {arguments.batch}, {threads} threads, {REPLICATES} replicates, "
        f"torch {torch.__version__}"
    )
    tell("plain beside plain   ", *compare(plain, plain, arguments.rounds))
    tell("plain beside recorded", *compare(plain, recorded, arguments.rounds))


if __name__ == "__main__":
    main()
