"""`mpvg fit` and `mpvg test` end to end, and their bad inputs."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import mpvg
from mpvg.checkpoint import load_model
from mpvg.cli import main
from mpvg.compare import training
from mpvg.compare.images import ImageFeed
from mpvg.compare.rates import Job
from mpvg.compare.settings import Settings
from mpvg.data.augmentation import Augmentation
from mpvg.data.preprocessing import to_tensors
from mpvg.data.sources import load_data
from mpvg.train.build import model_arguments
from mpvg.train.module import ImageClassification
from mpvg.train.progress import Stopwatch
from mpvg.train.recipe import Recipe, Schedule
from mpvg.train.steps import LossWatch
from test_data import save, tree


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return save(tmp_path / "set.npz")


def fit(dataset: str, out: Path, *options: str) -> int:
    fixed = ["--data", dataset, "--out", str(out), "--data.batch_size", "8"]
    return main(
        ["fit", *fixed, *(() if "max_epochs" in " ".join(options) else ("--trainer.max_epochs", "2")), *options]
    )


def same(one: Path, two: Path) -> bool:
    first, second = (load_model(path)[1].state_dict() for path in (one, two))
    return all(torch.equal(first[name], second[name]) for name in first)


def test_fit_test_and_load(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert fit(dataset, out, "--model.scheme", "mpvg:last_norm=2", "--model.recipe.lr", "0.01") == 0
    printed = capsys.readouterr().out
    assert "epoch 2/2, loss " in printed
    assert "images/s" in printed
    assert {"last.ckpt", "best.ckpt", "best.safetensors", "config.yaml"} <= {path.name for path in out.iterdir()}
    assert list(out.glob("tensorboard/*/events*"))
    with next(out.glob("csv/*/metrics.csv")).open(newline="") as file:
        columns = next(csv.reader(file))
    assert {"train/loss", "lr", "val/accuracy", "val/loss"} <= set(columns)
    assert yaml.safe_load((out / "config.yaml").read_text())["model"]["scheme"] == "mpvg:last_norm=2"

    assert main(["test", "--ckpt", str(out / "best.ckpt"), "--json"]) == 0
    tested = json.loads(capsys.readouterr().out)
    images = load_data(dataset)
    card, model = load_model(out / "best.safetensors")
    assert (card.model, card.scheme, card.classes) == ("mpvg_vit_nano", "mpvg:last_norm=2", ("0", "1", "2"))
    pixels, labels = to_tensors(images.test)
    outcome = training.evaluate(model, [((card.preprocessing(pixels),), labels)])
    assert tested["accuracy"] == pytest.approx(outcome.accuracy, abs=1e-6)
    assert tested["loss"] == pytest.approx(outcome.loss, abs=1e-5)
    assert tested["scheme"] == "mpvg:last_norm=2"
    assert same(out / "best.ckpt", out / "best.safetensors")
    predicted = mpvg.load(out / "best.ckpt").predict(images.test.images)
    right = [one["top5"][0]["name"] == str(label) for one, label in zip(predicted, images.test.labels, strict=True)]
    assert np.mean(right) == pytest.approx(outcome.accuracy)


@pytest.mark.parametrize(
    "changed", [{}, {"layer_decay": 0.5}, {"layer_decay": 0.5, "trains": "positions"}, {"trains": "head"}], ids=str
)
def test_fit_is_the_training_of_compare(changed: dict[str, Any], dataset: str, tmp_path: Path) -> None:
    """Same seed, same data, same recipe: the same weights, bit for bit."""
    out = tmp_path / "out"
    words = [f"--model.recipe.{option}={value}" for option, value in {"lr": 0.01, **changed}.items()]
    assert fit(dataset, out, "--seed_everything", "3", "--model.scheme", "lape", *words) == 0
    recipe = Recipe(**changed)
    settings = Settings(data=dataset, model="mpvg_vit_nano", epochs=2, batch_size=8, lrs=(0.01,), recipe=recipe)
    job = Job("lape", 3, 0.01)
    trained = training.train(settings, job, load_data(dataset), lambda done, loss: None)
    _, ours = load_model(out / "last.ckpt")
    for name, value in trained.built.model.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    assert isinstance(trained.built.feed, ImageFeed)
    assert trained.built.feed.preprocessing == load_model(out / "last.ckpt")[0].preprocessing


def test_fit_is_compare_with_all_that_a_recipe_draws(dataset: str, tmp_path: Path) -> None:
    """Crops, flips, operations, mixing, erasing, drop path, an average that is evaluated, rates by epoch."""
    drawn = {
        "shift": 0.0, "crop_scale": (0.5, 1.0), "interpolation": "random", "flip": 0.5, "erasing": 0.5, "repeats": 2,
        "rand_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "erase_after_mixup": True,
    }  # fmt: skip
    of_schedule = {"by": "epoch", "lead": 0, "warmup_epochs": 1, "warmup_lr": 0.001, "min_lr": 0.0005}
    of_recipe: dict[str, Any] = {"ema_decay": 0.5, "ema_evaluate": True}
    config = tmp_path / "recipe.yaml"
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in drawn.items()}
    recipe = {"lr": 0.01, **of_recipe, "schedule": of_schedule, "augmentation": listed}
    arguments = {"drop_path_rate": 0.3}
    config.write_text(yaml.safe_dump({"model": {"recipe": recipe, "arguments": arguments}, "seed_everything": 3}))
    assert fit(dataset, tmp_path / "out", "--config", str(config), "--trainer.max_epochs", "3") == 0
    card, ours = load_model(tmp_path / "out" / "last.ckpt")
    assert card.ema
    choices = Recipe(**of_recipe, schedule=Schedule(**of_schedule), augmentation=Augmentation(**drawn))  # type: ignore[arg-type]
    settings = Settings(data=dataset, model="mpvg_vit_nano", epochs=3, batch_size=8, lrs=(0.01,), recipe=choices)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "mpvg.compare.images.model_arguments", lambda *of_images: model_arguments(*of_images) | arguments
        )
        trained = training.train(settings, Job("mpvg", 3, 0.01), load_data(dataset), lambda done, loss: None)
    for name, value in trained.built.model.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


def test_no_checkpoint_is_written_of_a_loss_that_is_lost(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where losses are looked at now and then only, as on a GPU, those since are looked at before writing."""
    monkeypatch.setattr(LossWatch, "is_due", False)
    step = ImageClassification.training_step

    def spoilt(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = step(self, batch, batch_idx)
        if self.global_step == 1:
            with torch.no_grad():
                self.model.head.bias.fill_(float("nan"))
            self.watch.note(torch.tensor([float("nan"), 0.0]), epoch=1, step=2)
        return loss

    monkeypatch.setattr(ImageClassification, "training_step", spoilt)
    assert fit(dataset, tmp_path / "out", "--save_every", "1") == 3
    error = capsys.readouterr().err
    assert re.search(r"is nan at epoch 1, step 2: .*Kept: .*last\.ckpt in epoch 1, after step 1\.", error)
    _, kept = load_model(tmp_path / "out" / "last.ckpt")
    assert kept.head.bias.isfinite().all()


def test_a_run_that_was_stopped_ends_in_the_same_place(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--trainer.max_epochs",
        "4",
        "--model.arguments.drop_path_rate",
        "0.3",
        "--model.arguments.proj_drop_rate",
        "0.1",
        "--model.recipe.layer_decay",
        "0.75",
    ]
    assert fit(dataset, tmp_path / "whole", *options) == 0
    with next(tmp_path.glob("whole/csv/*/metrics.csv")).open(newline="") as file:
        validated = [float(row["val/accuracy"]) for row in csv.DictReader(file) if row["val/accuracy"]]
    assert len(set(validated)) > 1
    best = torch.load(tmp_path / "whole" / "best.ckpt", weights_only=True)["epoch"]
    assert best == validated.index(max(validated))
    step = ImageClassification.training_step

    def stopped(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 7:  # in the middle of the third of four epochs of three steps
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassification, "training_step", stopped)
    assert fit(dataset, tmp_path / "stopped", *options) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    assert fit(dataset, tmp_path / "stopped", *options) == 0
    assert "Going on from" in capsys.readouterr().out
    for name in ("last.ckpt", "best.ckpt"):
        assert same(tmp_path / "whole" / name, tmp_path / "stopped" / name), name
    assert fit(dataset, tmp_path / "stopped", *options[2:], "--trainer.max_epochs", "5") == 2
    assert "max_epochs 4 there, 5 here" in capsys.readouterr().err
    assert fit(dataset, tmp_path / "stopped", *options[2:], "--trainer.max_epochs", "5", "--overwrite") == 0
    assert "Going on" not in capsys.readouterr().out


def test_a_stopwatch_goes_on_where_it_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.5])
    monkeypatch.setattr("mpvg.train.progress.time.monotonic", lambda: next(now))
    stopwatch = Stopwatch()
    stopwatch.load_state_dict({"seconds": 100.0})
    stopwatch.on_train_start(None, None)  # type: ignore[arg-type]
    assert stopwatch.state_dict() == {"seconds": 102.5}


def test_a_validation_is_told_once(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2", "--save_every=1"]
    assert fit(dataset, tmp_path / "out", *options) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert ["validation" in line for line in lines] == [False, True, False]
    assert torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["callbacks"]["Stopwatch"]["seconds"] > 0
    assert fit(dataset, tmp_path / "zero", "--save_every=0") == 2
    assert "--save_every 0: name a number of steps, 1 or more" in capsys.readouterr().err


def test_a_loss_that_is_no_number(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(dataset, tmp_path / "early", "--model.recipe.lr", "1e30") == 3
    error = capsys.readouterr().err
    assert re.search(r"the loss of mpvg_vit_nano under mpvg is nan at epoch 1, step 2.*1e\+30.*nothing was kept", error)
    step = ImageClassification.training_step

    def spoilt(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 4:
            with torch.no_grad():
                self.model.head.bias.fill_(float("nan"))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassification, "training_step", spoilt)
    assert fit(dataset, tmp_path / "late") == 3
    error = capsys.readouterr().err
    assert re.search(r"nan at epoch 2, step 5: .*Kept: .*last\.ckpt after epoch 1, .*best\.ckpt after epoch 1\.", error)
    assert error.count("\n") == 1
    assert load_model(tmp_path / "late" / "last.ckpt")


def test_yaml_and_options(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(yaml.safe_dump({"model": {"scheme": "gap", "recipe": {"lr": 0.5}}, "trainer": {"max_epochs": 1}}))
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), "--model.recipe.lr", "0.25", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["model"]["scheme"], printed["model"]["recipe"]["lr"]) == ("gap", 0.25)
    assert printed["trainer"]["max_epochs"] == 1


def test_options_of_compare(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--img-size", "16"], ["--img-size=16"]):
        with pytest.raises(SystemExit):
            main(["fit", "--data", "here", *words, "--skip-bad-images", "--val-fraction", "0.3", "--print_config"])
        data = yaml.safe_load(capsys.readouterr().out)["data"]
        assert (data["source"], data["img_size"]) == ("here", 16)
        assert (data["skip_bad_images"], data["val_fraction"]) == (True, 0.3)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"model": {"shceme": "lape"}}, "'model.shceme' is unknown .did you mean 'model.scheme'"),
        ({"modle": {"scheme": "lape"}}, "'modle.scheme' is unknown .did you mean 'model.scheme'"),
        ({"model": {"recipe": {"weight_deacy": 1}}}, "did you mean 'model.recipe.weight_decay'"),
        ({"model": {"recipe": {"lr": "high"}}}, "'model.recipe.lr' does not take 'high'"),
        ({"model": {"scheme": "mpgv"}}, "did you mean 'mpvg'"),
        ({"model": {"name": "mpvg_vit_nan"}}, "did you mean 'mpvg_vit_nano'"),
        ({"model": {"arguments": {"drop_pth_rate": 0.1}}}, "drop_pth_rate"),
        ({"data": {"source": "digts"}}, "did you mean 'digits'"),
        ({"model": {"arguments": {"num_classes": 7}}}, "'num_classes' is decided by the images"),
        ({"model": {"recipe": {"opt": "adamv"}}}, "'adamv' is unknown .did you mean 'adam"),
        ({"model": {"recipe": {"lr": -1}}}, "lr -1"),
        ({"model": {"recipe": {"schedule": {"warmup_epochs": -2}}}}, "warmup_epochs -2"),
        ({"model": {"recipe": {"augmentation": {"shift": -1}}}}, "shift -1"),
        ({"model": {"recipe": {"label_smoothing": 5}}}, "label_smoothing 5"),
        ({"model": {"recipe": {"weight_decay": -1}}}, "weight_decay -1"),
        ({"model": {"recipe": {"layer_decay": 0}}}, "layer_decay 0.*above 0 and up to 1"),
        (
            {"model": {"recipe": {"trains": "position"}}},
            "'position' is unknown .did you mean 'positions'.*all, positions, head",
        ),
        (
            {"model": {"arguments": {"pos_embed": "sincos2d"}, "scheme": "gap", "recipe": {"trains": "positions"}}},
            "scheme 'gap' leaves this model none to train. Take a learned table or a scheme",
        ),
        ({"data": {"batch_size": 0}}, "batch_size 0"),
        ({"data": {"val_fraction": 2}}, "val_fraction 2"),
        ({"data": {"val_fraction": 0.999}}, "takes 1436 of 1437 training images"),
        ({"data": {"img_size": 9}}, "9 x 9 pixels cannot be cut"),
        ({"trainer": {"max_epochs": 0}}, "max_epochs 0"),
        ({"trainer": {"accelerator": "abacus"}}, "abacus"),
    ],
)
def test_bad_configurations_are_one_line(written: dict[str, Any], message: str, tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(yaml.safe_dump(written))
    assert main(["fit", "--config", str(config), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert main(["fit", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["EVIL"],)


def test_bad_checkpoints(dataset: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert fit(dataset, out, "--trainer.max_epochs", "1") == 0
    good = out / "best.ckpt"
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.ckpt")
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "short.ckpt").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "short.safetensors").write_bytes((out / "best.safetensors").read_bytes()[:5000])
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "plain.ckpt")
    other = torch.load(good, weights_only=True)
    other["mpvg"]["scheme"] = "lape"
    torch.save(other, tmp_path / "other.ckpt")
    capsys.readouterr()

    def said(*words: str) -> str:
        assert main(list(words)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    for command in (["test"], ["predict", "photo.png"]):
        for name, message in (
            ("evil.ckpt", "could run code, and was not read"),
            ("pickle.ckpt", "could run code, and was not read"),
            ("short.ckpt", "damaged or something else"),
            ("short.safetensors", "damaged or something else"),
            ("tensor.ckpt", "not a checkpoint that mpvg fit wrote"),
            ("plain.ckpt", "not a checkpoint that mpvg fit wrote"),
            ("none.ckpt", "is no file"),
        ):
            (tmp_path / "photo.png").touch()
            words = [str(tmp_path / word) if "." in word else word for word in command]
            assert message in said(*words, "--ckpt", str(tmp_path / name)), (command, name)
    assert not (tmp_path / "evil").exists()
    assert "do not fit mpvg_vit_nano under scheme 'lape'" in said("test", "--ckpt", str(tmp_path / "other.ckpt"))
    error = said("test", "--ckpt", str(good), "--model.scheme", "default")
    assert "a checkpoint of --model.scheme 'mpvg', not 'default'" in error
    error = said("test", "--ckpt", str(good), "--model.name", "mpvg_deit_tiny_patch16_224")
    assert "of --model.name 'mpvg_vit_nano', not 'mpvg_deit_tiny_patch16_224'" in error
    folder = tree(tmp_path / "pets", mode="L")
    assert "has the classes cat, dog, the checkpoint's model knows 0, 1, 2" in said(
        "test", "--ckpt", str(good), "--data.source", str(folder)
    )
    assert "pixels in colour" in said("test", "--ckpt", str(good), "--data.source", str(tree(tmp_path / "colour")))
    (out / "last.ckpt").write_bytes(good.read_bytes()[:5000])
    assert "last.ckpt cannot be read as a checkpoint" in said(
        "fit", "--data.source", dataset, "--out", str(out), "--data.batch_size", "8", "--trainer.max_epochs", "1"
    )


def test_a_folder_that_was_moved_goes_on(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit(dataset, tmp_path / "whole", "--trainer.max_epochs", "3") == 0
    step = ImageClassification.training_step

    def stopped(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 6:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(ImageClassification, "training_step", stopped)
        assert fit(dataset, tmp_path / "stopped", "--trainer.max_epochs", "3") == 130
    (tmp_path / "stopped").rename(tmp_path / "moved")
    assert fit(dataset, tmp_path / "moved", "--trainer.max_epochs", "3") == 0
    for name in ("last.ckpt", "best.ckpt"):
        assert same(tmp_path / "whole" / name, tmp_path / "moved" / name), name
    states = [
        torch.load(tmp_path / out / "last.ckpt", weights_only=True)["callbacks"].values() for out in ("whole", "moved")
    ]
    whole, moved = ([state.get("best_model_score") for state in of_run] for of_run in states)
    assert whole == moved


def test_options_of_the_trainer(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = ["--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "1"]
    assert fit(dataset, tmp_path / "mixed", *mixed) == 0
    assert fit(dataset, tmp_path / "mixed") == 2
    error = capsys.readouterr().err
    # 1 or 1.0: typing gives back the union of int and float that was written first, by whatever module
    assert re.search(r"precision 'bf16-mixed' there, None here; gradient_clip_val 1(\.0)? there, None here", error)
    assert fit(dataset, tmp_path / "quiet", "--trainer.enable_progress_bar", "false") == 0
    assert "images/s" not in capsys.readouterr().out
    assert (tmp_path / "quiet" / "best.safetensors").exists()
    assert fit(dataset, tmp_path / "fast", "--trainer.fast_dev_run", "true") == 0
    assert "No epoch was validated and kept" in capsys.readouterr().out
    assert fit(dataset, tmp_path / "bare", "--trainer.barebones", "true") == 0
    often = ["--trainer.val_check_interval", "1", "--trainer.accumulate_grad_batches", "3"]
    assert fit(dataset, tmp_path / "often", *often) == 0
    assert torch.load(tmp_path / "often" / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
def test_two_processes(dataset: str, tmp_path: Path) -> None:
    words = ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp"]
    words += ["--model.recipe.ema_decay", "0.9"]  # of which several processes must not wait for gradients
    command = [sys.executable, "-W", "ignore", "-m", "mpvg", "fit", "--data", dataset, "--data.batch_size", "8"]
    ended = subprocess.run([*command, "--trainer.max_epochs", "2", "--out", str(tmp_path / "two"), *words], timeout=300)
    assert ended.returncode == 0
    assert fit(dataset, tmp_path / "one") == 0
    one, two = (load_model(tmp_path / out / "last.ckpt")[1].state_dict() for out in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
