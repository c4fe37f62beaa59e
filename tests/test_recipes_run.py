"""Each recipe through the command line, cut to two steps on generated images; averages of weights; several rates."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import mpvg
from mpvg.checkpoint import load_model
from mpvg.cli import main
from mpvg.train.module import ImageClassification
from recipes import FOLDER, ROWS, read


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder as ImageNet's, of generated pictures."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


SLOW = ("imagenet1k/deit_base", "imagenet1k/deit_small")  # but for their widths they are deit_tiny


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in sorted(ROWS)]
)
def test_two_steps(name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config", str(FOLDER / f"{name}.yaml"), "--debug", "true"]
    if name == "imagenet1k/ceit_tiny":
        words += ["--data", str(images), "--model.scheme", "lape"]
    assert main(words) == 0
    assert "test split to watch" in capsys.readouterr().out
    content = torch.load("runs/debug/last.ckpt", weights_only=True)
    assert content["global_step"] == 2
    written, given = yaml.safe_load(Path("runs/debug/config.yaml").read_text()), read(name)
    for option, value in given["model"]["recipe"].items():
        kept = written["model"]["recipe"][option]
        assert {key: kept[key] for key in value} == value if isinstance(value, dict) else kept == value
    row = ROWS[name]
    keeps = any(key.startswith("ema.module.") for key in content["state_dict"])
    assert keeps == (row.ema[0] is not None)
    card, _ = load_model("runs/debug/last.ckpt")
    assert (card.ema, card.preprocessing.crop, card.preprocessing.size) == (
        row.ema[1],
        row.crop_pct,
        (row.side, row.side),
    )
    assert (card.preprocessing.mean, card.preprocessing.std) == (row.mean, row.std)
    assert main(["test", "--ckpt", "runs/debug/last.ckpt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == (2 if "--data" in words else 4)


def test_a_model_that_was_tested_on_centres_predicts_on_centres(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As timm resizes and crops, alone and from the folder that is shared."""
    monkeypatch.chdir(tmp_path)
    of_data = ["--data", str(images), "--data.workers", "0", "--img-size", "32", "--data.crop_pct", "0.8"]
    bilinear = ["--data.interpolation", "bilinear", "--val-fraction", "0", "--debug", "true"]
    assert main(["fit", *of_data, *bilinear]) == 0
    picture = images / "val" / "cat" / "0.png"  # 50 x 40: to 50 x 40 again, whose centre is 32 x 32
    expected = np.asarray(Image.open(picture))[4:36, 9:41]
    classifier = mpvg.load("runs/debug/last.ckpt")
    assert np.array_equal(classifier.read(picture), expected)
    assert np.array_equal(classifier.read(Image.open(picture)), expected)
    assert main(["share", "runs/debug/last.ckpt", "shared"]) == 0
    found = json.loads(Path("shared/config.json").read_text())["pretrained_cfg"]
    assert (found["crop_pct"], found["crop_mode"], found["interpolation"]) == (0.8, "center", "bilinear")
    capsys.readouterr()
    assert main(["predict", "--ckpt", "runs/debug/last.safetensors", str(picture)]) == 0
    first = json.loads(capsys.readouterr().out)["top5"][0]
    with torch.no_grad():
        pixels = torch.tensor(expected).permute(2, 0, 1)[None]
        probabilities = classifier.model(classifier.card.preprocessing(pixels)).softmax(1)[0]
    assert first["prob"] == pytest.approx(probabilities.max().item(), abs=1e-5)


def test_classes_that_are_missing(images: Path, tmp_path: Path, capsys: Any) -> None:
    fixed = ["fit", "--data", str(images), "--img-size", "32", "--out", str(tmp_path / "out"), "--debug", "true"]
    assert main([*fixed, "--model.num_classes", "1000"]) == 2
    assert "has 2 classes, fewer than the head's 1000" in capsys.readouterr().err
    assert main([*fixed, "--model.num_classes", "2"]) == 0


def test_the_average_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """After two steps of a decay of 0.75, by hand; evaluated only where the recipe says so; asked for by --ema."""
    monkeypatch.chdir(tmp_path)
    fixed = ["fit", "--data", "generated", "--model.recipe.lr", "0.01", "--val-fraction", "0", "--debug", "true"]
    assert main([*fixed, "--model.recipe.ema_decay", "0.75"]) == 0
    content = torch.load("runs/debug/last.ckpt", weights_only=True)["state_dict"]
    card, plain = load_model("runs/debug/last.ckpt")
    _, average = load_model("runs/debug/last.ckpt", ema=True)
    assert not card.ema
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, content[f"model.{name}"])
        assert torch.equal(average.state_dict()[name], content[f"ema.module.{name}"])
    assert not torch.equal(plain.head.weight, average.head.weight)
    first = mpvg.load("runs/debug/last.ckpt").model
    assert torch.equal(first.head.weight, plain.head.weight)
    capsys.readouterr()
    assert main(["test", "--ckpt", "runs/debug/last.ckpt", "--ema", "true", "--json"]) == 0
    of_average = json.loads(capsys.readouterr().out)["loss"]
    assert main(["test", "--ckpt", "runs/debug/last.ckpt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] != of_average
    evaluated = ["--model.recipe.ema_decay", "0.75", "--model.recipe.ema_evaluate", "true"]
    assert main([*fixed, *evaluated]) == 0
    card, model = load_model("runs/debug/last.safetensors")
    assert card.ema
    assert torch.equal(model.head.weight, average.head.weight)
    capsys.readouterr()
    for file, ema in (("last.safetensors", "false"), ("last.safetensors", "true")):
        code = main(["test", "--ckpt", f"runs/debug/{file}", "--ema", ema])
        assert code == (2 if ema == "false" else 0)
    assert "keeps the moving average of its weights alone" in capsys.readouterr().err
    assert main([*fixed]) == 0
    capsys.readouterr()
    assert main(["test", "--ckpt", "runs/debug/last.ckpt", "--ema", "true"]) == 2
    assert "keeps no moving average" in capsys.readouterr().err
    assert main([*fixed, "--model.recipe.ema_evaluate", "true"]) == 2
    assert "ema_evaluate true without an average" in capsys.readouterr().err


def test_several_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Each in a folder of its own; the validation split chooses, and one whose loss is lost is not chosen."""
    monkeypatch.chdir(tmp_path)
    fixed = ["fit", "--trainer.max_epochs", "2", "--out", "out"]
    assert main([*fixed, "--lr", "0.0001,0.01,1e30"]) == 0
    said = capsys.readouterr().out
    rows = {float(row["lr"]): row["val_score"] for row in csv.DictReader(Path("out/lr.csv").read_text().splitlines())}
    assert set(rows) == {0.0001, 0.01, 1e30}
    assert rows[1e30] == ""
    assert float(rows[0.01]) > float(rows[0.0001])
    assert "Learning rate 0.01 was chosen on the validation split. It is in out/best.ckpt." in said
    for name in ("best.ckpt", "best.safetensors"):
        assert Path("out", name).read_bytes() == Path("out", "lr-0.01", name).read_bytes()
    assert main([*fixed, "--lr=0.01,0.0001"]) == 0  # both have finished
    assert "epoch 1/2" not in capsys.readouterr().out
    assert main([*fixed, "--lr", "0.01"]) == 2
    assert "holds" in capsys.readouterr().err
    assert main([*fixed[:3], "--lr", "0.01,0.02", "--val-fraction", "0"]) == 2
    assert "need a validation split" in capsys.readouterr().err
    assert main([*fixed[:3], "--lr", "0.01,high"]) == 2
    assert "'high' is not a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "null"])
@pytest.mark.parametrize("count", [7, 300])
def test_sets_smaller_than_a_batch(count: int, workers: str, tmp_path: Path) -> None:
    """With repeated augmentation an epoch of 300 images has 256 draws; to be mixed, images are paired."""
    random = np.random.default_rng(0)
    split: dict[str, Any] = {
        "images": random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8),
        "labels": np.arange(count) % 2,
    }
    np.savez(tmp_path / "set.npz", **{f"{name}_{key}": split[key] for name in ("train", "test") for key in split})
    drawn = ["--model.recipe.augmentation.repeats=3", "--model.recipe.augmentation.mixup=0.8"]
    words = ["--data.batch_size=512", f"--data.workers={workers}", "--val-fraction=0", "--trainer.max_epochs=2"]
    out = tmp_path / "out"
    assert main(["fit", "--data", str(tmp_path / "set.npz"), "--img-size=8", *drawn, *words, "--out", str(out)]) == 0
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == 2


def test_trying_a_training_leaves_it_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--data", "generated", "--out", "mine", "--trainer.max_epochs", "1"]
    assert main(words) == 0
    before = Path("mine/last.ckpt").read_bytes()
    for _ in range(2):
        capsys.readouterr()
        assert main([*words, "--debug", "true"]) == 0
        assert "epoch 1/1" in capsys.readouterr().out  # from the first step each time
    assert Path("mine/last.ckpt").read_bytes() == before
    assert Path("mine-debug/last.ckpt").exists()


def test_images_that_workers_left_out_are_told(images: Path, tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "set"
    shutil.copytree(images, root)
    for part in ("train/cat/1.png", "val/dog/bad.png"):
        (root / part).write_bytes(b"no image")
    fixed = ["--data", str(root), "--data.workers=2", "--img-size=16", "--skip-bad-images"]
    words = ["fit", *fixed, "--val-fraction=0", "--trainer.max_epochs=1", "--data.batch_size=8"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "Left out as unreadable: 2 images; the first is" in said
    assert "1.png" in said
    assert main(["test", "--ckpt", str(tmp_path / "out" / "last.ckpt"), "--json"]) == 0
    read = capsys.readouterr()
    assert json.loads(read.out)["images"] == 2
    assert "bad.png" in read.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr"], "--lr without a rate"),
        (["--model.arguments", "{drop_path_rat: 0.1}"], "no argument 'drop_path_rat' (did you mean 'drop_path_rate'?)"),
        (["--data.crop_pct", "0.9"], "name --data.workers 4"),
        (["--model.recipe.augmentation.mixup", "1", "--data.batch_size", "5"], "batch_size 5 is odd"),
    ],
)
def test_bad_options_are_one_line(words: list[str], message: str, capsys: Any) -> None:
    assert main(["fit", "--data", "generated", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("cut", [[], ["--trainer.max_steps", "25"], ["--trainer.accumulate_grad_batches", "2"]])
def test_an_epoch_is_an_epoch_however_a_training_is_cut(cut: list[str], tmp_path: Path) -> None:
    """Rates by epoch, of the epochs that there really are, and other draws at every batch."""
    seen: list[tuple[int, float, float]] = []
    step = ImageClassification.training_step

    def noting(self: Any, batch: Any, batch_idx: int) -> Any:
        seen.append((self.current_epoch, self.optimizers().param_groups[0]["lr"], torch.rand(()).item()))
        return step(self, batch, batch_idx)

    of_schedule = {"by": "epoch", "lead": 0, "warmup_epochs": 10, "warmup_lr": 0.001}
    words = [f"--model.recipe.schedule.{name}={value}" for name, value in of_schedule.items()]
    words += ["--data.batch_size=2", "--val-fraction=0", "--trainer.max_epochs=20", "--model.recipe.lr=0.011"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ImageClassification, "training_step", noting)
        assert main(["fit", "--data", "generated", *words, *cut, "--out", str(tmp_path / "out")]) == 0
    assert len(seen) == (25 if cut[:1] == ["--trainer.max_steps"] else 160)  # 8 batches an epoch
    for epoch, rate, _ in seen:
        expected = 0.001 * (1 + epoch) if epoch < 10 else 0.011 / 2 * (1 + math.cos(math.pi * epoch / 20))
        assert rate == pytest.approx(expected)
    assert len({drawn for _, _, drawn in seen}) == len(seen)


@pytest.mark.slow
def test_a_compiled_training_is_that_of_the_model(tmp_path: Path) -> None:
    """Names in the checkpoint stay, and weights are those of the plain training but for rounding."""
    words = ["fit", "--data", "generated", "--model.recipe.lr=0.001", "--model.recipe.ema_decay=0.9"]
    words += ["--data.batch_size=8", "--trainer.max_epochs=2"]
    assert main([*words, "--out", str(tmp_path / "plain")]) == 0
    assert main([*words, "--out", str(tmp_path / "compiled"), "--model.compile=default"]) == 0
    one, two = (load_model(tmp_path / out / "last.ckpt")[1].state_dict() for out in ("plain", "compiled"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
