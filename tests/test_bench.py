"""Models that take turns: the clock, the ratios and their intervals, what each contestant does, and the command."""

from __future__ import annotations

import csv
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from mpvg.bench import heats, memory, turns
from mpvg.bench import work as turns_work
from mpvg.bench.heats import Heat, measure, merged
from mpvg.bench.memory import peak_mib
from mpvg.bench.turns import Ratio, is_quiet, processor_clock, ratio, take_turns
from mpvg.bench.work import Contestant, Task
from mpvg.cli import main
from mpvg.commands import bench as command
from mpvg.commands import options
from mpvg.errors import RunError
from mpvg.fold import Folded

NANO = "mpvg_vit_nano"
FEW = ["--models", NANO, "--batch", "2", "--rounds", "6", "--seconds", "1", "--no-memory"]


def ready(works: Sequence[turns.Work]) -> list[Callable[[], turns.Work]]:
    return [lambda work=work: work for work in works]  # type: ignore[misc]


def test_every_piece_of_work_has_a_turn_in_every_round() -> None:
    random.seed(0)
    calls: list[int] = []
    works = [lambda each=each: calls.append(each) for each in range(4)]
    ticks = count()

    def clock(work: Callable[[], object], times: int) -> float:
        work()
        return next(ticks)

    rounds: list[int] = []
    times = take_turns(ready(works), clock, rounds=60, seconds=100, after_round=rounds.append)
    assert rounds == list(range(1, 61))
    played = [tuple(calls[start : start + 4]) for start in range(len(calls) - 240, len(calls), 4)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in played)
    assert len({order.index(0) for order in played}) == 4, "none always comes first"
    assert len(set(played)) > 8
    followers = {order[order.index(0) + 1] for order in played if order.index(0) < 3}
    assert followers == {1, 2, 3}, "none always follows the same"
    assert all(len(found) == 60 for found in times)
    first = next(ticks) - 1 - 240
    assert times[played[0][0]][0] == first + 1  # a time is kept with the work it belongs to


def test_time_ends_the_rounds_but_not_before_there_is_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = count(step=10)
    monkeypatch.setattr(turns.time, "monotonic", lambda: next(now))
    assert len(take_turns(ready([lambda: None] * 2), lambda work, times: 1.0, rounds=100, seconds=5)[0]) == 6
    assert len(take_turns(ready([lambda: None] * 2), lambda work, times: 1.0, rounds=100, seconds=55)[0]) > 6


def test_short_work_is_repeated_within_a_turn() -> None:
    asked: list[int] = []

    def clock(work: Callable[[], object], times: int) -> float:
        asked.append(times)
        return 0.01

    take_turns(ready([lambda: None] * 2), clock, rounds=6, seconds=9)
    assert set(asked[-12:]) == {5}


def test_the_clock_tells_the_time_of_one() -> None:
    done: list[int] = []

    def work() -> None:
        done.append(1)
        turns.time.sleep(0.01)

    seconds = processor_clock(work, 5)
    assert len(done) == 5
    assert 0.01 <= seconds < 0.05


@pytest.mark.parametrize("rounds", [6, 9, 20, 37, 100])
def test_the_interval_encloses_the_median(rounds: int) -> None:
    """By order statistics: at least 95 %, and the next narrower one would be below that."""
    times = [1 + 0.01 * step for step in range(rounds)]
    random.Random(0).shuffle(times)
    found = ratio(times, [1.0] * rounds)
    cut = round((found.low - 1) / 0.01)
    assert math.isclose(found.high, 1 + 0.01 * (rounds - 1 - cut))
    assert binom.cdf(cut, rounds, 0.5) <= 0.025 < binom.cdf(cut + 1, rounds, 0.5)
    assert math.isclose(found.median, 1 + 0.01 * (rounds - 1) / 2)


def test_a_reference_of_two_turns_counts_as_their_geometric_mean() -> None:
    found = ratio([3.0] * 6, [1.0] * 6, [4.0] * 6)
    assert found == pytest.approx((1.5, 1.5, 1.5))
    with pytest.raises(ValueError, match="rounds=5"):
        ratio([1.0] * 5, [1.0] * 5)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 2), st.integers(0, 2**32))
def test_a_drift_of_the_machine_leaves_the_ratio_alone(true: float, seed: int) -> None:
    noise = random.Random(seed)
    speed = [2 ** noise.uniform(-1, 1) for _ in range(30)]
    assert ratio([true * now for now in speed], speed) == pytest.approx((true, true, true))


def test_coverage() -> None:
    """Of 400 benchmarks of two equal things on a machine with bursts, about 95 % or more have an interval around 1."""
    noise = random.Random(0)

    def times() -> list[float]:
        return [1 + abs(noise.gauss(0, 0.01)) + (noise.random() < 0.1) * noise.random() for _ in range(25)]

    inside = sum(found.low <= 1 <= found.high for found in (ratio(times(), times()) for _ in range(400)))
    assert inside >= 372


@pytest.mark.parametrize(
    ("noise", "quiet"),
    [
        ((1.0, 0.995, 1.005), True),
        ((1.009, 0.99, 1.019), True),
        ((1.011, 1.005, 1.015), False),
        ((0.989, 0.985, 0.995), False),
        ((1.0, 0.979, 1.0), False),
        ((1.0, 1.0, 1.021), False),
    ],
)
def test_quiet(noise: tuple[float, float, float], quiet: bool) -> None:
    assert is_quiet(Ratio(*noise)) == quiet


TASK = Task(mode="eager", training=False, batch=2)
PLAIN, SCHEME, FOLDED = Contestant(NANO, "gap"), Contestant(NANO, "mpvg"), Contestant(NANO, "mpvg", folded=True)


def staged(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], *, second: float = 1.0) -> None:
    """Have contestants take given times, the second turn of the first one `second` times as long as its first."""
    built: list[str] = []

    def prepare(self: Task, contestant: Contestant, **_: Any) -> Any:
        factor = second if contestant.variant in built else 1.0
        built.append(contestant.variant)
        return lambda: factor * seconds[contestant.variant]

    monkeypatch.setattr(Task, "prepare", prepare)
    monkeypatch.setattr(heats, "processor_clock", lambda work, times: work())


def test_a_heat_gives_a_ratio_for_each_contestant(monkeypatch: pytest.MonkeyPatch) -> None:
    staged(monkeypatch, {"gap": 0.1, "mpvg": 0.11, "mpvg, folded": 0.1})
    monkeypatch.setattr(heats, "peak_mib", lambda task, contestant: {"gap": 10.0, "mpvg": 20.0}.get(contestant.variant))
    found = measure(Heat(TASK, PLAIN, (FOLDED, SCHEME)), rounds=8, seconds=9, memory=True)
    folded, scheme = found.rows()
    assert (folded["variant"], scheme["variant"], scheme["scheme"]) == ("folded", "unfolded", "mpvg")
    assert [scheme[key] for key in ("ratio", "low", "high", "milliseconds", "milliseconds_against")] == pytest.approx(
        [1.1, 1.1, 1.1, 110, 100]
    )
    assert [folded[key] for key in ("ratio", "noise", "noise_low", "noise_high", "rounds")] == [1, 1, 1, 1, 8]
    assert [row["peak_mib"] for row in (folded, scheme)] == [None, 20]
    assert scheme["peak_mib_against"] == 10


def test_both_turns_of_the_reference_count(monkeypatch: pytest.MonkeyPatch) -> None:
    staged(monkeypatch, {"gap": 0.1, "mpvg": 0.11}, second=1.008)
    found = measure(Heat(TASK, PLAIN, (SCHEME,)), rounds=8, seconds=9)
    assert found.ratios[0].median == pytest.approx(1.1 / math.sqrt(1.008))


def test_models_are_built_anew_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    seen: list[int] = []

    def prepare(self: Task, contestant: Contestant, **_: Any) -> Any:
        built.append(contestant.variant)
        number = len(built)
        return lambda: 0.1 if number <= 3 else 0.2

    monkeypatch.setattr(Task, "prepare", prepare)
    monkeypatch.setattr(heats, "processor_clock", lambda work, times: work())
    found = measure(Heat(TASK, PLAIN, (SCHEME,)), rounds=21, seconds=9, builds=2, after_round=seen.append)
    assert sorted(built) == ["gap"] * 4 + ["mpvg"] * 2
    assert seen == list(range(1, 22))
    assert found.rounds == 21
    assert found.milliseconds == pytest.approx((100, 100))  # 11 rounds of the first build, 10 of the second
    assert measure(Heat(TASK, PLAIN, ()), rounds=6, seconds=9, builds=100).rounds == 6
    assert found.ratios[0] == pytest.approx((1, 1, 1))


def test_a_noisy_machine_gives_no_ratio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    staged(monkeypatch, {"gap": 0.1, "mpvg": 0.11}, second=1.05)
    found = measure(Heat(TASK, PLAIN, (SCHEME,)), rounds=8, seconds=9, memory=False)
    (row,) = found.rows()
    assert (found.ratios, row["ratio"], row["low"], row["high"]) == ((), None, None, None)
    assert row["noise"] in (1.05, 0.95238)  # whichever was built first
    assert row["milliseconds"] == 110
    first, second = command._lines(found)
    assert tuple(row) == heats.COLUMNS
    assert "beside itself 1.050" in first or "beside itself 0.952" in first
    assert "too noisy to tell" in second
    assert "1.1" not in second


def test_contestants_are_what_they_say() -> None:
    assert isinstance(FOLDED.build(None), Folded)
    assert str(SCHEME.build((16, 24)).scheme) == "mpvg"
    assert SCHEME.build((16, 24)).patch_embed.img_size == (16, 24)
    timm_own = Contestant("deit_tiny_patch16_224").build((32, 32))
    assert type(timm_own).__module__.startswith("timm.")
    assert all(
        getattr(block.drop_path1, "drop_prob", 0) == 0
        for block in Contestant("mpvg_swin_tiny_patch4_window7_224", "gap").build(None).layers[3].blocks
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inference_does_what_it_says(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    model = FOLDED.build((16, 16))
    monkeypatch.setattr(Contestant, "build", lambda *_: model)
    model.register_forward_hook(lambda module, args, output: seen.append((module.training, args[0], output)))
    Task("eager", False, 3, (16, 16), dtype=dtype).prepare(FOLDED)()
    ((training, images, output),) = seen
    assert (training, tuple(images.shape), images.dtype) == (False, (3, 3, 16, 16), getattr(torch, dtype))
    assert output.is_inference()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_step_does_what_it_says(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    model = SCHEME.build((16, 16))
    monkeypatch.setattr(Contestant, "build", lambda *_: model)
    model.register_forward_hook(lambda module, args, output: seen.append((module.training, output.dtype)))
    stepped: list[int] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: stepped.append(len(self.param_groups[0]["params"])))
    Task("eager", True, 12, (16, 16), dtype=dtype).prepare(SCHEME)()  # more images than classes
    assert seen == [(True, getattr(torch, dtype))]
    assert stepped == [len(list(model.parameters()))]
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_a_training_step_learns() -> None:
    work = Task("eager", True, 4, (16, 16)).prepare(SCHEME)
    losses: list[torch.Tensor] = []
    cross_entropy = turns_work.F.cross_entropy
    with pytest.MonkeyPatch.context() as patch:

        def noted(*args: Any) -> torch.Tensor:
            losses.append(cross_entropy(*args))
            return losses[-1]

        patch.setattr(turns_work.F, "cross_entropy", noted)
        for _ in range(30):
            work()
    assert losses[-1] < losses[0]


def test_onnxruntime_infers() -> None:
    """In a process of its own: once sessions share threads, all sessions of a process have to."""
    code = """if True:
        import torch
        from mpvg.bench.work import Contestant, Task

        task, folded = Task("onnx", False, 3, (16, 16)), Contestant("mpvg_vit_nano", "mpvg", folded=True)
        (logits,), model = task.prepare(folded)(), folded.build((16, 16))
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), model(task.images(model)), rtol=1e-3, atol=1e-4)
        task.prepare(Contestant("mpvg_vit_nano", "gap"))()
        print("the same")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "the same\n", done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("training", [False, True])
def test_graphs_compute_what_is_captured(training: bool) -> None:
    model = SCHEME.build((16, 16), "cuda")
    task = Task("eager", training, 4, (16, 16), device="cuda", dtype="bfloat16", graphs=True)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    work = task.work(model, task.images(model))
    assert turns.gpu_clock(work, 3) > 0
    moved = [not torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True)]
    assert any(moved) == training


@pytest.mark.skipif(not memory._STATUS.exists(), reason="needs Linux's /proc")
def test_peak_memory_is_that_of_the_work_alone() -> None:
    """A training step at 64 images of 32 pixels keeps some 30 MiB more than one at 1; Python's own are not counted."""
    few, many = (peak_mib(Task("eager", True, batch, (32, 32)), SCHEME) for batch in (1, 64))
    assert few is not None
    assert many is not None
    assert 0 < few < 40
    assert few + 20 < many < 250


def test_a_process_that_fails_is_told() -> None:
    with pytest.raises(RunError, match=r"peak memory of no_such_model could not be measured: .*no_such_model"):
        peak_mib(TASK, Contestant("no_such_model"))


def test_times_outlive_a_memory_that_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(task: Task, contestant: Contestant) -> float:
        raise RunError("out of memory")

    staged(monkeypatch, {"gap": 0.1, "mpvg": 0.11})
    monkeypatch.setattr(heats, "peak_mib", fail)
    found = measure(Heat(TASK, PLAIN, (SCHEME,)), rounds=8, seconds=9, memory=True)
    assert found.ratios[0].median == pytest.approx(1.1)
    assert [row["peak_mib"] for row in found.rows()] == [None]
    assert list(command._lines(found))[-1] == "  out of memory"


@pytest.mark.skipif(not memory._STATUS.exists(), reason="needs Linux's /proc")
@pytest.mark.slow
def test_peak_memory_in_onnxruntime_has_the_weights_in_it() -> None:
    found = peak_mib(Task("onnx", False, 1, (32, 32)), Contestant("mpvg_deit_tiny_patch16_224", "gap"))
    assert found is not None
    assert 20 < found < 120  # 21 MiB of weights


def test_new_rows_replace_old_ones_of_the_same() -> None:
    old = [dict.fromkeys(heats.KEY, "a") | {"ratio": "1"}, dict.fromkeys(heats.KEY, "b") | {"ratio": "2"}]
    new = [dict.fromkeys(heats.KEY, "a") | {"ratio": 3}]
    assert [row["ratio"] for row in merged(old, new)] == ["2", 3]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(turns, "OFF", 10)
    monkeypatch.setattr(turns, "WIDE", 10)
    out = tmp_path / "bench.csv"
    words = ["bench", *FEW, "--against", "gap", "--img-size", "16", "--csv", str(out)]
    assert main([*words, "--schemes", "mpvg,gap", "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert [(row["scheme"], row["variant"], row["size"]) for row in rows] == [
        ("mpvg", "folded", "16x16"), ("mpvg", "unfolded", "16x16"), ("gap", "unfolded", "16x16")
    ]  # fmt: skip
    assert all(row["low"] <= row["ratio"] <= row["high"] and row["rounds"] == 6 for row in rows)
    assert "batch 2, eager inference, float32, cpu: " in captured.err
    with out.open(encoding="utf-8") as file:
        first = list(csv.DictReader(file))
    assert main([*words, "--schemes", "lape,gap", "--variants", "unfolded"]) == 0
    printed = capsys.readouterr().out
    assert "  lape  " in printed
    with out.open(encoding="utf-8") as file:
        second = list(csv.DictReader(file))
    assert [row["scheme"] for row in second] == ["mpvg", "mpvg", "lape", "gap"]
    assert second[:2] == first[:2]


@pytest.mark.parametrize("quiet", [True, False])
def test_a_self_test_says_what_it_found(
    quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turns, "OFF", 10 if quiet else -1)
    monkeypatch.setattr(turns, "WIDE", 10)
    out = tmp_path / "bench.csv"
    words = ["bench", *FEW, "--against", "default", "--img-size", "16", "--self-test", "--csv", str(out)]
    assert main(words) == 0
    _, found = capsys.readouterr().out.splitlines()
    assert ("quiet enough" if quiet else "too noisy to tell") in found
    with out.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["model"], row["scheme"], row["against"]) == (NANO, "default", f"{NANO}:default")
    assert row["ratio"] == (row["noise"] if quiet else "")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["bench", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


def test_bad_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'mpvg_vit_nano'" in refused(capsys, "--models", "mpvg_vit_nanno")
    assert "timm has no vit_nano. Name a scheme" in refused(capsys, "--models", NANO)
    assert "no model of timm and no scheme (did you mean 'default'?)" in refused(capsys, *FEW, "--against", "defualt")
    assert "did you mean 'eager'" in refused(capsys, "--mode", "eagre")
    assert "'0' is not a whole number" in refused(capsys, "--batch", "1,0")
    assert "inference on the processor in float32" in refused(capsys, "--mode", "onnx", "--train")
    assert "inference on the processor in float32" in refused(capsys, "--mode", "onnx", "--precision", "bfloat16")
    assert "a folded model is for inference" in refused(capsys, "--train", "--variants", "folded,unfolded")
    assert "'fold' is unknown (did you mean 'folded'?)" in refused(capsys, "--variants", "fold")
    assert "--graphs are CUDA's" in refused(capsys, "--graphs")
    assert "at least 6" in refused(capsys, "--rounds", "5")
    assert "'mpgv' is unknown" in refused(capsys, "--schemes", "mpgv")
    assert "cannot be cut into patches" in refused(capsys, "--img-size", "225")
    assert "cannot be written" in refused(capsys, *FEW, "--against", "gap", "--csv", str(tmp_path / "no" / "bench.csv"))
    assert "mpvg_vit_nano:default: images of 17 x 17" in refused(
        capsys, *FEW, "--against", "default", "--img-size", "17", "--self-test"
    )
    assert "resnet50: " in refused(capsys, *FEW, "--against", "resnet50", "--img-size", "64")
    assert "give one size for all with --img-size" in refused(capsys, *FEW, "--against", "vit_tiny_patch16_224")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert "holds something else" in refused(capsys, *FEW, "--against", "gap", "--csv", str(tmp_path / "other.csv"))
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"
    monkeypatch.setattr(command.shutil, "which", lambda name: None)
    assert "needs a C++ compiler" in refused(capsys, "--mode", "compile")
    monkeypatch.setattr(options, "find_spec", lambda name: None if name.startswith("onnx") else "found")
    assert "pip install 'mpvg[export]'" in refused(capsys, "--mode", "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--mode", "compile"], ["--mode", "compile", "--train"]], ids=" ".join)
def test_compiled(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *FEW, "--against", "gap", *words]) == 0
    assert f"compile {'training' if '--train' in words else 'inference'}" in capsys.readouterr().out
