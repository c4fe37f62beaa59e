"""Our deformable attention beside transformers', and where a ViT-Adapter's time goes.

    python benchmarks/deformable_attention.py [--rounds 20] [--out results/dense]

Forward and backward at the shapes that ViT-Adapter-Ti has in its recipes: crops of 512 x 512 for segmentation, images
of 800 x 1344 for detection. Both take turns in one process; peaks of memory are of a fresh process each.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

import mpvg
from mpvg.bench.turns import Work, keep_memory, processor_clock, ratio, take_turns
from mpvg.dense.deformable import cell_centres, multi_scale_deformable_attention
from mpvg.dense.interaction import Geometry
from mpvg.files import as_csv, write_atomically
from mpvg.machine import machine_name

assert mpvg  # registers the models
HEADS, WIDTH, POINTS = 6, 32, 4
SIZES = {"segmentation": (2, 512, 512), "detection": (1, 800, 1344)}  # images, height, width
STATUS = Path("/proc/self/status")
FRUGAL = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # tensors go back to the system at once: the peak is what was alive
Shapes = list[tuple[int, int]]


def ours(values: Tensor, shapes: Shapes, places: Tensor, weights: Tensor) -> Tensor:
    return multi_scale_deformable_attention(values, shapes, places, weights)


def of_transformers(values: Tensor, shapes: Shapes, places: Tensor, weights: Tensor) -> Tensor:
    return MultiScaleDeformableAttention()(values, None, shapes, None, places, weights, 64)


CONTESTANTS = {"transformers": of_transformers, "mpvg": ours}


def given(part: str, task: str) -> tuple[Tensor, Shapes, Tensor, Tensor]:
    """Return what an injector or an extractor hands to its attention at the start of a training."""
    batch, height, width = SIZES[task]
    levels, grid = [(height // stride, width // stride) for stride in (8, 16, 32)], (height // 16, width // 16)
    shapes, at = (levels, [grid]) if part == "injector" else ([grid], levels)
    torch.manual_seed(0)
    centres = cell_centres(at)
    rows = sum(one * other for one, other in shapes)
    sizes = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float32)
    offsets = 2 * torch.randn(batch, len(centres), HEADS, len(shapes), POINTS, 2)
    places = centres[:, None, None, None] + offsets / sizes[:, None]
    weights = torch.randn(batch, len(centres), HEADS, len(shapes) * POINTS).softmax(-1)
    values = torch.randn(batch, rows, HEADS, WIDTH)
    weights = weights.unflatten(-1, (len(shapes), POINTS))
    return values.requires_grad_(), shapes, places.requires_grad_(), weights.requires_grad_()


def both_ways(contestant: str, part: str, task: str) -> Work:
    """Return a forward and backward pass."""
    values, shapes, places, weights = given(part, task)

    def work() -> None:
        found = CONTESTANTS[contestant](values, shapes, places, weights)
        torch.autograd.grad(found.sum(), (values, places, weights))

    return work


def peak_mib(contestant: str, part: str, task: str) -> float:
    """Return the peak memory of a pass in a process of its own, beyond what it had before."""
    command = [sys.executable, "-W", "ignore", __file__, "--peak", contestant, part, task]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **FRUGAL})
    return float(done.stdout.split()[-1])


def _peak(contestant: str, part: str, task: str) -> float:
    work = both_ways(contestant, part, task)
    work()  # what libraries load at first does not count
    gc.collect()
    before = _of_status("VmRSS")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    work()
    return _of_status("VmHWM") - before


def _of_status(key: str) -> float:
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) / 2**10


def beside_transformers(*, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each shape: times, their ratio and the peaks."""
    rows = []
    for task, (batch, height, width) in SIZES.items():
        for part in ("injector", "extractor"):
            outputs = [call(*given(part, task)) for call in CONTESTANTS.values()]
            prepare = [partial(both_ways, name, part, task) for name in CONTESTANTS]
            times = take_turns(prepare, processor_clock, rounds=rounds, seconds=120)
            compared = ratio(times[1], times[0])
            peaks = [peak_mib(name, part, task) for name in CONTESTANTS]
            rows.append({
                "shapes of": f"{part}, {batch} x {height} x {width}",
                "transformers_ms": f"{1e3 * median(times[0]):.1f}", "mpvg_ms": f"{1e3 * median(times[1]):.1f}",
                "ratio": f"{compared.median:.3f}", "ratio_low": f"{compared.low:.3f}",
                "ratio_high": f"{compared.high:.3f}",
                "transformers_mib": f"{peaks[0]:.1f}", "mpvg_mib": f"{peaks[1]:.1f}",
                "memory_ratio": f"{peaks[1] / peaks[0]:.3f}",
                "largest_difference": f"{(outputs[0] - outputs[1]).abs().max().item():.1e}", "rounds": len(times[0]),
            })  # fmt: skip
    return rows


def _training(call: Callable[..., Any], *inputs: Any) -> Work:
    def work() -> None:
        found = call(*inputs)
        sum(one.sum() for one in (found if isinstance(found, list | tuple) else [found])).backward()

    return work


def where_time_goes(*, rounds: int) -> list[dict[str, Any]]:
    """Return the time of a ViT-Adapter's parts, forward and backward, alone but with what they are given within it."""
    batch, height, width = SIZES["segmentation"]
    model = timm.create_model("mpvg_vit_adapter_tiny_patch16", vit_maps="each").train()
    dim, grid = model.num_features, (height // 16, width // 16)
    levels = [(height // stride, width // stride) for stride in (8, 16, 32)]
    image, tokens = torch.randn(batch, 3, height, width), torch.randn(batch, grid[0] * grid[1], dim)
    prior = torch.randn(batch, sum(one * other for one, other in levels), dim)
    where = Geometry.of(grid, levels, tokens)
    maps = [torch.randn(batch, dim, height // stride, width // stride) for stride in (4, 8, 16, 32)]
    of_trunk = [tokens.transpose(1, 2).unflatten(2, grid)] * len(maps)
    stages = model.interactions
    extractors = [one for stage in stages for one in (stage.extractor, *stage.extra_extractors)]

    def trunk(x: Tensor) -> Tensor:
        x, positions, own_grid = model.trunk.embed(x)
        return model.trunk.run_blocks(x, positions, 0, len(model.trunk.blocks), None, own_grid)

    works: dict[str, Work] = {
        "whole": _training(model, image),
        "trunk": _training(trunk, image),
        "spatial prior": _training(model.spatial_prior, image),
        "injectors": _training(lambda: [stage.injector(tokens, prior, where) for stage in stages]),
        "extractors' attention": _training(
            lambda: [one.attn(one.query_norm(prior), where.at_prior, one.feat_norm(tokens), [grid])
                     for one in extractors]
        ),
        "extractors' ConvFFN": _training(lambda: [one.ffn(one.ffn_norm(prior), levels) for one in extractors]),
        "outputs": _training(model._join, maps, of_trunk),
    }  # fmt: skip
    prepare = [partial(works.__getitem__, name) for name in works]
    times = take_turns(prepare, processor_clock, rounds=rounds, seconds=240)
    whole = median(times[0])
    return [
        {"part": name, "milliseconds": f"{1e3 * median(found):.0f}", "of_whole": f"{median(found) / whole:.3f}"}
        for name, found in zip(works, times, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("results/dense"), help="folder of the CSV files")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(_peak(*options.peak))
        return
    keep_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    about = {
        "threads": torch.get_num_threads(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "hardware": machine_name("cpu"),
        **{package: version(package) for package in ("torch", "transformers")},
    }
    for name, measure in (("deformable_attention", beside_transformers), ("adapter_time", where_time_goes)):
        rows = [row | about for row in measure(rounds=options.rounds)]
        write_atomically(options.out / f"{name}.csv", as_csv(rows))
        for row in rows:
            print(", ".join(f"{key} {value}" for key, value in row.items() if key not in about))


if __name__ == "__main__":
    main()
