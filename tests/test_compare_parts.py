"""What a comparison is made of: training, learning rates, what is counted on the test split."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from mpvg import SCHEMES
from mpvg.compare import training
from mpvg.compare.rates import Job, choose
from mpvg.compare.settings import Settings
from mpvg.compare.summary import balanced_accuracy, best_run, describe, has_converged, rise_over_last_fifth, summarise
from mpvg.compare.training import Length, evaluate, train_and_test
from mpvg.data.preprocessing import to_tensors
from mpvg.data.sources import Split, load_data
from mpvg.errors import NonFiniteLossError
from mpvg.scheme import PositionScheme
from mpvg.train import optimizer as optimizers
from mpvg.train import steps
from mpvg.train.optimizer import build_schedule
from mpvg.train.recipe import Recipe, Schedule, default_lr
from test_data import save


def test_training_learns_and_is_reproducible(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.arange(96) % 2
    images = random.integers(0, 40, (96, 8, 8), dtype=np.uint8)
    images[labels == 1, :, 4:] += 150  # bright on the right: where matters, not only what
    images[labels == 0, :, :4] += 150
    splits = {f"{split}_{kind}": value for split in ("train", "val", "test")
              for kind, value in (("images", images), ("labels", labels))}  # fmt: skip
    data = load_data(save(tmp_path / "sides.npz", **splits))
    settings = Settings(data="sides", model="mpvg_vit_nano", epochs=12, batch_size=16, lrs=(2e-3,))
    told: list[float] = []
    record = train_and_test(settings, Job("mpvg", 0, 2e-3), data, lambda done, loss: told.append(done))
    assert record["accuracy"] == 1.0
    assert record["curve"]["train_loss"][-1] < record["curve"]["train_loss"][0]
    assert told == sorted(told)
    assert told[-1] == 1.0
    again = train_and_test(settings, Job("mpvg", 0, 2e-3), data, lambda done, loss: None)
    assert again["curve"] == record["curve"]
    assert record["val_accuracy"] == record["curve"]["val_accuracy"][-1]
    assert record["confusion"] == [[0, 0, 48], [1, 1, 48]]
    with pytest.raises(NonFiniteLossError, match=r"mpvg, seed 0 is nan at epoch 1, step 2"):
        train_and_test(settings, Job("mpvg", 0, 1e30), data, lambda done, loss: None)


def test_what_every_step_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning rate, decay, smoothing and initial weights, against values computed here."""
    seen: list[dict[str, Any]] = []

    true_step = steps.training_step

    def spy(model: Any, images: Any, labels: Any, recipe: Recipe) -> Any:
        first = model.blocks[0].attn.qkv.weight.detach().clone() if not seen else None
        seen.append(
            {"first": first, "batch": images[0], "smoothing": recipe.label_smoothing, "training": model.training}
        )
        return true_step(model, images, labels, recipe)

    rates: list[float] = []
    groups: list[tuple[float, int]] = []

    def spy_on_optimizer(model: Any, recipe: Recipe) -> Any:
        optimizer = optimizers.build_optimizer(model, recipe)
        groups[:] = [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
        optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setattr(steps, "training_step", spy)
    monkeypatch.setattr(training, "build_optimizer", spy_on_optimizer)
    data = load_data("digits")
    recipe = Recipe(label_smoothing=0.2)
    settings = Settings(data="digits", model="mpvg_vit_nano", epochs=2, batch_size=64, lrs=(4e-3,), recipe=recipe)
    starts = {}
    for scheme, seed in (("mpvg", 0), ("default", 0), ("mpvg", 1)):
        seen.clear()
        rates.clear()
        train_and_test(settings, Job(scheme, seed, 4e-3), data, lambda done, loss: None)
        starts[scheme, seed] = seen[0]["first"], seen[0]["batch"]
    for one, two in zip(starts["mpvg", 0], starts["default", 0], strict=True):
        assert torch.equal(one, two)
    for one, two in zip(starts["mpvg", 0], starts["mpvg", 1], strict=True):
        assert not torch.equal(one, two)

    count, warmup = 34, 3
    expected = [
        4e-3 * t / warmup if t < warmup else 2e-3 * (1 + math.cos(math.pi * t / count)) for t in range(1, count + 1)
    ]
    assert rates == pytest.approx(expected, abs=1e-9)
    assert len(seen) == count
    assert {step["smoothing"] for step in seen} == {0.2}
    assert all(step["training"] for step in seen)
    matrices = 6 * 4 + 2  # qkv, proj, fc1 and fc2 of each block; patches and head
    assert (0.05, matrices) in groups


def test_the_loss_has_smoothed_labels() -> None:
    model: Any = timm.create_model("mpvg_vit_nano", img_size=8, in_chans=1)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    with torch.no_grad():
        log = model.eval()(images).log_softmax(1)
    expected = -(0.8 * log[torch.arange(4), labels] + 0.2 * log.mean(1)).mean().item()
    loss = steps.training_step(model, (images,), labels, Recipe(label_smoothing=0.2))
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_trainings_have_a_rate(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    build_schedule(optimizer, Schedule(), steps=steps, epochs=1, steps_an_epoch=steps)
    assert optimizer.param_groups[0]["lr"] > 0.1


def test_wider_models_have_a_lower_rate() -> None:
    assert default_lr("mpvg_vit_nano") == pytest.approx(4e-3)
    assert default_lr("mpvg_deit_tiny_patch16_224") == pytest.approx(1e-3)


def test_rise_is_measured_from_four_fifths_to_the_end() -> None:
    short = {"steps": 4, "curve": {"step": [1, 2, 3, 4], "val_accuracy": [0.1, 0.5, 0.9, 0.9]}}
    assert rise_over_last_fifth(short) == 0.0
    assert not has_converged([short])
    curve = {"step": [20, 40, 60, 80, 100], "val_accuracy": [0.1, 0.5, 0.8, 0.85, 0.9]}
    rising = {"steps": 100, "curve": curve}
    assert rise_over_last_fifth(rising) == pytest.approx(0.05)
    assert not has_converged([rising])
    assert has_converged([{"steps": 100, "curve": {**curve, "val_accuracy": [0.1, 0.5, 0.8, 0.9, 0.904]}}])


@pytest.mark.parametrize(
    ("epochs", "train", "val", "points"), [(50, 1149, 288, 40), (1, 40_000, 10_000, 5), (2, 3, 3, 5)]
)
def test_reading_the_curve_takes_a_small_part_of_the_time(epochs: int, train: int, val: int, points: int) -> None:
    schedule = Length.of(Settings(data="", model="", epochs=epochs, batch_size=64, lrs=(1.0,)), train)
    steps = schedule.curve_steps(val)
    assert len(steps) == min(points, schedule.steps)
    assert {schedule.steps, round(0.8 * schedule.steps)} <= steps


def test_descriptions_tell_schemes_apart() -> None:
    described = {name: describe(scheme, first_block="lape" in name) for name, scheme in SCHEMES.items()}
    assert len(set(described.values())) == len(SCHEMES)
    assert "every block but the first" in described["mpvg"]
    assert "block 5" in describe(PositionScheme(last_norm=5), first_block=True)


def test_schemes_that_are_one_in_a_family_are_told() -> None:
    settings = Settings(data="digits", model="mpvg_swin_tiny_patch4_window7_224", epochs=1, batch_size=8, lrs=(1e-3,))
    job = Job("default", 0, 1e-3)
    run = {
        **job._asdict(),
        "built_as": "gap",
        "first_block": False,
        "parameters": 1,
        "steps": 5,
        "accuracy": 0.5,
        "val_accuracy": 0.5,
        "shuffled_accuracy": None,
        "confusion": [[0, 0, 20], [1, 0, 20]],
        "curve": {"step": [5], "val_accuracy": [0.5]},
        "train_samples": 8,
        "val_samples": 2,
        "hardware": "a laptop",
        "versions": {},
        "seconds": 1.0,
    }
    runs = [run, {**run, "scheme": "gap"}, {**run, "scheme": "mpvg", "built_as": "mpvg"}]
    summary = summarise(settings, load_data("digits"), ["default", "gap", "mpvg"], runs, None, "")
    (note,) = [note for note in summary["notes"] if "one scheme" in note]
    assert note.startswith("default and gap are one scheme in mpvg_swin_tiny")
    assert "Average pooling" in summary["schemes"][0]["description"]


def trial(lr: float, accuracy: float | None, loss: float | None = 1.0) -> dict[str, Any]:
    return {"scheme": "mpvg", "lr": lr, "val_accuracy": accuracy, "val_loss": loss}


def test_the_best_rate_is_that_of_the_best_validation() -> None:
    assert choose([trial(0.1, 0.5), trial(0.2, 0.7), trial(0.3, 0.6)])["lr"] == 0.2
    assert choose([trial(0.1, 0.7, 0.9), trial(0.2, 0.7, 0.8)])["lr"] == 0.2
    assert choose([trial(0.2, 0.7), trial(0.1, 0.7)])["lr"] == 0.1
    assert choose([trial(0.1, None, None), trial(0.2, 0.1)])["lr"] == 0.2
    with pytest.raises(NonFiniteLossError, match=r"mpvg is no number with any --lr tried \(0.1, 0.2\)"):
        choose([trial(0.1, None, None), trial(0.2, None, None)])


def test_trials_never_see_the_test_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = load_data(save(tmp_path / "set.npz"))
    seen: list[Any] = []

    def spy(split: Split, device: str = "cpu") -> Any:
        seen.append(split.images.tobytes())
        return to_tensors(split, device)

    monkeypatch.setattr("mpvg.compare.images.to_tensors", spy)
    settings = Settings(data="", model="mpvg_vit_nano", epochs=1, batch_size=8, lrs=(1e-3, 1e-2))
    training.try_rate(settings, Job("mpvg", 0, 1e-3, trial=True), data, lambda done, loss: None)
    assert data.test.images.tobytes() not in seen
    train_and_test(settings, Job("mpvg", 0, 1e-3), data, lambda done, loss: None)
    assert seen.count(data.test.images.tobytes()) == 1


def test_confusions_are_counted_by_true_class() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 1, 2, 2]), 3).float() * 9

    class Fixed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return logits[images]

    halves = torch.arange(6).split(3), labels.split(3)
    outcome = evaluate(Fixed(), [((rows,), of_rows) for rows, of_rows in zip(*halves, strict=True)])
    assert outcome.accuracy == pytest.approx(4 / 6)
    assert outcome.confusion.tolist() == [[1, 1, 0], [0, 2, 1], [0, 0, 1]]
    run = {"seed": 0, "val_accuracy": 0.5, "accuracy": 4 / 6, "confusion": [[0, 0, 1], [0, 1, 1], [1, 1, 2], [1, 2, 1]]}
    better = {**run, "seed": 1, "val_accuracy": 0.6, "accuracy": 0.1}
    assert balanced_accuracy(run, 3) == pytest.approx((1 / 2 + 2 / 3) / 2)
    best = best_run([run, better, {**run, "seed": 2, "val_accuracy": 0.6}], ("a", "b", "c"))
    assert best["seed"] == 1
    assert best["per_class"][1] == {"name": "b", "samples": 3, "accuracy": 2 / 3}
    assert best["per_class"][2]["accuracy"] is None


def test_correlations_are_of_images_of_all_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    count = 600  # more than are looked at, and sorted by class as files are
    labels = np.repeat(np.arange(3), [300, 270, 30])
    images = labels.astype(np.uint8)[:, None, None] * np.ones((8, 8), np.uint8)
    changes = {"test_images": images, "test_labels": labels}
    data = load_data(save(tmp_path / "set.npz", **changes))
    seen: list[torch.Tensor] = []

    def spy(model: Any, images: torch.Tensor) -> dict[int, float | None]:
        seen.append(images)
        return {}

    monkeypatch.setattr(training, "correlation_by_block", spy)
    settings = Settings(data="", model="mpvg_vit_nano", epochs=1, batch_size=8, lrs=(1e-3,))
    train_and_test(settings, Job("mpvg", 0, 1e-3), data, lambda done, loss: None)
    assert len(seen[0]) < count
    assert len(seen[0].unique()) == 3


def test_a_trial_whose_validation_is_no_number_has_diverged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = load_data(save(tmp_path / "set.npz"))
    settings = Settings(data="", model="mpvg_vit_nano", epochs=1, batch_size=8, lrs=(1e-3, 1e-2))
    job = Job("mpvg", 0, 1e-3, trial=True)
    nothing = torch.zeros(3, 3)
    monkeypatch.setattr(training, "evaluate", lambda *_: training.Outcome(0.5, math.nan, nothing))
    record = training.try_rate(settings, job, data, lambda done, loss: None)
    assert (record["val_accuracy"], record["val_loss"]) == (None, None)
