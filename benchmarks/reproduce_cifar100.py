"""Table 2 of the paper on CIFAR-100: ViT-Lite-7/4 under every scheme, seed after seed, as long as there is time.

    python benchmarks/reproduce_cifar100.py --data cifar100.npz
    python benchmarks/reproduce_cifar100.py --data cifar100.npz --slice 570     # stops after 570 seconds

The same command goes on where it was stopped, by the slice's end, a signal or a crash. With a GPU it trains the paper's
recipe, several runs at once; without one a narrow model for few epochs (cifar100_small.yaml), a run a core. Each run is
an `mpvg fit` and an `mpvg test`; what they say is in WORK/NAME.log. Each finished run is a row of the results' file.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from mpvg.checkpoint import load_model
from mpvg.compare.summary import versions
from mpvg.errors import UserError
from mpvg.files import as_csv, write_atomically
from mpvg.machine import machine_name
from mpvg.out import locked

ROOT = Path(__file__).parents[1]
_KEY = ("scheme", "last_norm_bias_lr", "seed", "recipe_hash", "hardware")  # one row of each; a repetition replaces it
_STOPPED = (0, 130, -signal.SIGTERM)  # by SIGTERM, by Ctrl-C, which reaches the runs as well, or before they listened


class Run(NamedTuple):
    """A scheme, a seed, and the rate of the Last LN's bias beside the others': 2 for the control of MPVG."""

    scheme: str
    seed: int
    last_norm_bias_lr: float = 1.0

    @property
    def name(self) -> str:
        control = "" if self.last_norm_bias_lr == 1 else f"-bias-lr-{self.last_norm_bias_lr:g}"
        return f"{self.scheme}{control}-{self.seed}"


@dataclass(frozen=True)
class Study:
    """What is trained, in this order.

    Args:
        recipe: File of options for `mpvg fit`.
        runs: The runs.
        options: Further options.
    """

    recipe: Path
    runs: tuple[Run, ...]
    options: tuple[str, ...]

    def hash(self) -> str:
        """Return what tells recipes apart, whatever their comments and layout."""
        content = [yaml.safe_load(self.recipe.read_text()), *self.options]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def studies(seeds: int) -> dict[str, Study]:
    def of(scheme: str, *, first: int = 0, last_norm_bias_lr: float = 1.0) -> list[Run]:
        return [Run(scheme, seed, last_norm_bias_lr) for seed in range(first, seeds)]

    printed = ("default", "mpvg", "pvg", "lape")  # what the paper's table has comes first, a seed of each
    once = [Run(scheme, 0) for scheme in printed]
    again = [Run(scheme, seed) for seed in range(1, seeds) for scheme in printed]
    paper = [*once, *again, *of("gap"), *of("lape_gap"), *of("pvg", last_norm_bias_lr=2.0)]
    by_seed = sorted(paper, key=lambda run: run.seed)
    return {
        "paper": Study(
            ROOT / "recipes" / "cifar100" / "vit_lite_7_4.yaml",
            tuple(paper),
            ("--model.compile=reduce-overhead", "--trainer.check_val_every_n_epoch=10", "--trainer.logger=false"),
        ),
        "small": Study(ROOT / "benchmarks" / "cifar100_small.yaml", tuple(by_seed), ("--trainer.logger=false",)),
    }


class Runner:
    """Trains the runs of a study side by side and notes what came out.

    Args:
        study: What to train.
        data: CIFAR-100.
        work: Folder of runs, one of which may be another study's.
        results: The CSV file.
        at_once: Runs that share the machine.
        device: "cpu" or "cuda", for the name of the hardware.
    """

    def __init__(self, study: Study, *, data: str, work: Path, results: Path, at_once: int, device: str) -> None:
        self.study, self.data, self.work, self.results, self.at_once = study, data, work, results, at_once
        self.threads = max((os.cpu_count() or 1) // at_once, 1)
        threads = f"; threads a run: {self.threads}" if device == "cpu" else ""
        self.hardware = f"{machine_name(device)}{threads}; runs at once: {at_once}"
        self.stopped = False

    def run(self, *, until: float) -> int:
        """Go on until all is done, or a moment of `time.monotonic`; return the exit code."""
        waiting = [run for run in self.study.runs if not self._is_finished(run)]
        failed = max((self._note(run) for run in self.study.runs if run not in waiting), default=0)
        running: dict[Run, subprocess.Popen[bytes]] = {}
        try:
            while waiting or running:
                if self.stopped or time.monotonic() > until:
                    break
                while waiting and len(running) < self.at_once:
                    run = waiting.pop(0)
                    running[run] = self._start(run)
                time.sleep(0.2)
                for run, code in self._ended(running):
                    failed = max(failed, self._result(run, code))
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
        failed = max([failed, *(self._result(run, code, tests=False) for run, code in self._ended(running))])
        finished = [run.name for run in self.study.runs if self._noted(run).exists()]
        left = [run.name for run in self.study.runs if run.name not in finished]
        print(f"{len(finished)} of {len(self.study.runs)} runs are finished.", end=" ")
        print(f"The same command goes on with {', '.join(left)}." if left else f"Results: {self.results}.", flush=True)
        return failed

    def _result(self, run: Run, code: int, *, tests: bool = True) -> int:
        """Note a run that ended, or say why it did; return the exit code that counts."""
        if self._is_finished(run):
            return self._note(run) if tests else 0  # at the end of a slice there is no time: the next one does it
        if code in _STOPPED:
            return 0
        print(f"{run.name}: {self._last_words(run)}", flush=True)
        self.stopped |= code == 2  # bad input, which the others have as well
        return abs(code)

    def stop(self, *_: Any) -> None:
        """Have `run` end soon; a handler of signals."""
        self.stopped = True

    def _ended(self, running: dict[Run, subprocess.Popen[bytes]]) -> Iterator[tuple[Run, int]]:
        for run, process in list(running.items()):
            code = process.poll()
            if code is not None:
                del running[run]
                yield run, code

    def _is_finished(self, run: Run) -> bool:
        return (self.work / run.name / "last.safetensors").is_file()

    def _noted(self, run: Run) -> Path:
        """Return the file that holds the row of a run which was tested."""
        return self.work / f"{run.name}.json"

    def _start(self, run: Run) -> subprocess.Popen[bytes]:
        print(f"{run.name}: training", flush=True)
        own = [f"--model.scheme={run.scheme}", f"--seed_everything={run.seed}"]
        own += [f"--model.recipe.last_norm_bias_lr={run.last_norm_bias_lr}", f"--out={self.work / run.name}"]
        command = ["fit", f"--config={self.study.recipe}", f"--data={self.data}", *self.study.options, *own]
        with self._log(run).open("ab") as log:
            return subprocess.Popen(**self._process(command), stdout=log, stderr=log)

    def _process(self, words: Sequence[str]) -> dict[str, Any]:
        command = [sys.executable, "-W", "ignore", "-m", "mpvg", *words]
        return {"args": command, "env": {**os.environ, "OMP_NUM_THREADS": str(self.threads)}}

    def _log(self, run: Run) -> Path:
        return self.work / f"{run.name}.log"

    def _last_words(self, run: Run) -> str:
        words = self._log(run).read_text(errors="replace").split("\n")
        return next((line for line in reversed(words) if line.strip()), "it said nothing")

    def _note(self, run: Run) -> int:
        """Test a finished run, once, and write its row; return the exit code of the test."""
        folder, noted = self.work / run.name, self._noted(run)
        if noted.exists():
            self._write(json.loads(noted.read_text()))
            return 0
        settings = json.loads((folder / "config.json").read_text())
        tested = subprocess.run(
            **self._process(["test", f"--ckpt={folder / 'last.ckpt'}", f"--data={self.data}", "--json"]),
            stdout=subprocess.PIPE,
        )
        if tested.returncode:
            print(f"{run.name}: it is trained, but could not be tested", flush=True)
            return tested.returncode
        found = json.loads(tested.stdout)
        checkpoint = torch.load(folder / "last.ckpt", map_location="cpu", weights_only=True)
        seconds = checkpoint["callbacks"]["Stopwatch"]["seconds"]
        _, model = load_model(folder / "last.safetensors")
        row = {
            "recipe": str(self.study.recipe.relative_to(ROOT)),
            "model": settings["model"],
            **run._asdict(),
            "accuracy": found["accuracy"],
            "loss": found["loss"],
            "epochs": checkpoint["epoch"] + 1,
            "steps": checkpoint["global_step"],
            "lr": settings["lr"],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "hours": round(seconds / 3600, 4),
            "images_per_second": round(checkpoint["global_step"] * settings["batch_size"] / seconds),
            "recipe_hash": self.study.hash(),
            **versions(),
            "hardware": self.hardware,
        }
        self._write(row)
        write_atomically(noted, json.dumps(row, indent=1))
        print(f"{run.name}: {100 * row['accuracy']:.2f} % after {row['hours']:.2f} hours", flush=True)
        return 0

    def _write(self, row: dict[str, Any]) -> None:
        """Write a row, in the place of one of the same run, if there is one."""
        others = [one for one in _rows(self.results) if any(one[name] != str(row[name]) for name in _KEY)]
        self.results.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.results, as_csv([*others, row]))


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="data/cifar100", help="CIFAR-100: torchvision's files, an .npz or a folder (data/cifar100)")
    add("--slice", type=float, default=float("inf"), metavar="SECONDS", help="stop then, to go on later (no end)")
    add("--study", choices=("auto", *studies(1)), default="auto", help="auto: paper with a GPU, small without one")
    add("--seeds", type=int, help="seeds of each scheme (paper 3, small 2)")
    add("--at-once", type=int, help="runs that share the machine (4 on a GPU, otherwise one a core)")
    add("--work", type=Path, default=ROOT / "runs" / "reproduce-cifar100", help="folder of the runs")
    add("--results", type=Path, default=ROOT / "results" / "cifar100_vit_lite.csv", help="where each run has a row")
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    name = options.study if options.study != "auto" else "paper" if has_gpu else "small"
    started = time.monotonic()
    study = studies(options.seeds or (3 if name == "paper" else 2))[name]
    runner = Runner(
        study,
        data=options.data,
        work=options.work / f"{name}-{study.hash()}",  # another recipe's runs are other runs
        results=options.results,
        at_once=options.at_once or (4 if has_gpu else os.cpu_count() or 1),
        device="cuda" if has_gpu else "cpu",
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, runner.stop)
    try:
        with locked(runner.work):
            return runner.run(until=started + options.slice)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
