"""Prediction: the same pixels as in training, from files, folders and arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mpvg
from helpers import perturb
from mpvg.checkpoint import Card, save_safetensors
from mpvg.cli import main
from mpvg.data.preprocessing import Preprocessing
from mpvg.data.sources import load_data
from mpvg.train.build import model_arguments
from test_data import tree


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    classes = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
    card = Card(
        model="mpvg_vit_nano",
        scheme="mpvg",
        arguments=model_arguments((8, 12), 3, len(classes)),
        preprocessing=Preprocessing((8, 12), 3, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        classes=classes,
        data={},
    )
    path = tmp_path / "model.safetensors"
    save_safetensors(path, card, perturb(card.build()))
    return path


def picture(path: Path, *, mode: str = "RGB", size: tuple[int, int] = (12, 8), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_predictions_are_the_models(checkpoint: Path, tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png")
    pixels = np.asarray(Image.open(file))
    classifier = mpvg.load(checkpoint)
    assert not classifier.model.training
    scaled = (
        torch.tensor(pixels).permute(2, 0, 1) / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    ) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    with torch.no_grad():
        expected = classifier.model(scaled[None]).softmax(1)[0]
    for image in (file, str(file), pixels, Image.open(file)):
        (found,) = classifier.predict(image)
        assert found["file"] == (str(file) if isinstance(image, str | Path) else None)
        names = [guess["name"] for guess in found["top5"]]
        assert names == [classifier.classes[label] for label in expected.argsort(descending=True)[:5]]
        values = [guess["prob"] for guess in found["top5"]]
        assert values == pytest.approx(sorted(expected.tolist(), reverse=True)[:5], abs=1e-6)


def test_features_are_what_the_head_reads(checkpoint: Path, tmp_path: Path) -> None:
    classifier = mpvg.load(checkpoint)
    files = [picture(tmp_path / f"{seed}.png", seed=seed) for seed in range(3)]
    features = classifier.features(files)
    assert features.shape == (3, 48)
    with torch.no_grad():
        names = classifier.model.head(torch.from_numpy(features)).softmax(1).argmax(1)
    assert [classifier.classes[label] for label in names] == [
        one["top5"][0]["name"] for one in classifier.predict(files)
    ]
    assert classifier.features([]).shape == (0, 48)
    assert classifier.predict([]) == []


def test_the_batch_size_does_not_matter(checkpoint: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (130, 8, 12, 3), dtype=np.uint8)
    classifier = mpvg.load(checkpoint)
    many = classifier.features(images)
    one = np.concatenate([classifier.features(image) for image in images[[0, 64, 129]]])
    np.testing.assert_allclose(many[[0, 64, 129]], one, atol=1e-5)


def test_any_image_is_made_to_fit(checkpoint: Path, tmp_path: Path) -> None:
    """A folder resized in training and a file resized in prediction are the same pixels."""
    root = tree(tmp_path / "set", side=20)
    wide = picture(root / "train" / "cat" / "0.png", size=(31, 17))
    trained = load_data(str(root), mixed_size=(8, 12)).train.images[0]
    np.testing.assert_array_equal(mpvg.load(checkpoint).read(wide), trained)
    for mode in ("L", "RGBA", "P", "1", "CMYK"):
        suffix = "tif" if mode == "CMYK" else "png"
        (found,) = mpvg.load(checkpoint).predict(picture(tmp_path / f"{mode}.{suffix}", mode=mode, size=(64, 200)))
        assert len(found["top5"]) == 5


def lines(capsys: Any) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_lines(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    files = [picture(folder / "b.png", seed=1), picture(folder / "more" / "a.png", seed=2)]
    assert main(["predict", "--ckpt", str(checkpoint), str(folder)]) == 0
    found = lines(capsys)
    assert [line["file"] for line in found] == [str(file) for file in files]
    for line, expected in zip(found, mpvg.load(checkpoint).predict(files), strict=True):
        assert set(line) == {"file", "top5"}
        assert [guess["name"] for guess in line["top5"]] == [guess["name"] for guess in expected["top5"]]
        assert [set(guess) for guess in line["top5"]] == [{"name", "prob"}] * 5
    assert main(["predict", "--ckpt", str(checkpoint), "--features", *map(str, files)]) == 0
    found = lines(capsys)
    np.testing.assert_allclose([line["features"] for line in found], mpvg.load(checkpoint).features(files), rtol=1e-5)


def test_bad_images(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [picture(tmp_path / f"{name}.png", seed=index) for index, name in enumerate("abc")]
    whole = files[1].read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"GIF89a"):
        files[1].write_bytes(broken)
        assert main(["predict", "--ckpt", str(checkpoint), *map(str, files)]) == 2
        captured = capsys.readouterr()
        assert [json.loads(line)["file"] for line in captured.out.splitlines()] == [str(files[0])]
        assert "b.png cannot be read" in captured.err
        assert "--skip-bad-images" in captured.err
        assert captured.err.count("\n") == 1
        assert main(["predict", "--ckpt", str(checkpoint), "--skip-bad-images", *map(str, files)]) == 0
        captured = capsys.readouterr()
        assert [json.loads(line)["file"] for line in captured.out.splitlines()] == [str(files[0]), str(files[2])]
        assert "1 of 3 images were left out" in captured.err
    assert main(["predict", "--ckpt", str(checkpoint), str(tmp_path / "none.png")]) == 2
    assert "none.png" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["predict", "--ckpt", str(checkpoint), str(tmp_path / "empty")]) == 2
    assert "holds no images" in capsys.readouterr().err
    assert main(["predict", "--ckpt", str(checkpoint)]) == 2
    assert "images" in capsys.readouterr().err


@pytest.mark.parametrize("image", [np.zeros((8, 12, 2), np.uint8), np.zeros((8, 12)), np.zeros((0, 12, 3), np.uint8)])
def test_arrays_that_are_no_images(checkpoint: Path, image: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        mpvg.load(checkpoint).predict([image])
