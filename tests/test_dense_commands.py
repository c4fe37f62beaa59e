"""Detection and segmentation through `mpvg fit`, `test` and `predict`, as a user types them."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dense_sets import objects, write_coco
from mpvg.checkpoint import load_any, task_of
from mpvg.cli import main
from mpvg.dense.card import DenseCard
from mpvg.dense.written import _different_stems
from mpvg.train.tasks import value_named

TINY = "{embed_dim: 24, depth: 4, num_heads: 2, deform_heads: 2, prior_width: 8, img_size: 64}"
SMALL = {
    "detection": {
        "model.head": "{width: 16, hidden: 32, rois: 8, proposals: [20, 10], candidates: [20, 20], detections: 5, "
        "score_threshold: 0}",
        "data.scales": "[64]", "data.max_long": "96", "data.crop": "false", "data.eval_scale": "64",
    },
    "segmentation": {
        "model.head": "{channels: 8, auxiliary_channels: 8}", "data.scale": "64", "data.crop_size": "64",
        "model.evaluates": "whole",
    },
}  # fmt: skip
OF_ALL = {"model.arguments": TINY, "data.workers": "0", "trainer.max_epochs": "1", "trainer.accelerator": "cpu"}
SCORES = {"detection": "box_ap", "segmentation": "miou"}


def words(task: str, out: Path, **changes: Any) -> list[str]:
    options = {
        **OF_ALL,
        **SMALL[task],
        "out": out,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return ["fit", "--task", task, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


@pytest.fixture(scope="module", params=["detection", "segmentation"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("trained") / request.param
    assert main(words(request.param, out)) == 0
    return request.param, out


def test_a_checkpoint_says_what_it_is_for(trained: tuple[str, Path]) -> None:
    task, out = trained
    for name in ("last.ckpt", "last.safetensors"):
        assert task_of(out / name) == task
        card, model = load_any(out / name)
        assert isinstance(card, DenseCard)
        assert (card.scheme, card.model) == ("mpvg", "mpvg_vit_adapter_tiny_patch16")
        assert not model.training
    assert yaml.safe_load((out / "config.yaml").read_text())["task"] == task


def test_it_is_tested(trained: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    task, out = trained
    assert main(["test", "--ckpt", str(out / "last.ckpt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found[SCORES[task]] <= 1
    assert found["images"] == 8
    assert main(["test", f"--ckpt={out / 'last.safetensors'}"]) == 0
    told = capsys.readouterr().out
    assert f"{100 * found[SCORES[task]]:.2f} %" in told
    assert "-100" not in told  # of sizes that no object has


def test_the_same_command_is_done(trained: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    task, out = trained
    before = (out / "last.safetensors").read_bytes()
    assert main(words(task, out)) == 0
    assert "Going on from" in capsys.readouterr().out
    assert (out / "last.safetensors").read_bytes() == before
    changes: dict[str, dict[str, Any]] = {
        "lr": {"model__recipe__lr": 0.01},
        "head": {"model__head": "{}"},
        "min_side": {"data__min_side": 3},
    }
    for what, changed in changes.items():
        assert main(words(task, out, **changed)) == 2
        assert what in capsys.readouterr().err


def pictures(folder: Path) -> list[Path]:
    """Write images of kinds that a camera or the web has."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "1.png")
    Image.fromarray(pixels).convert("L").save(folder / "2.png")
    Image.fromarray(pixels).convert("CMYK").save(folder / "3.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(pixels).save(folder / "4.jpg", exif=exif)
    Image.fromarray(pixels[:1]).save(folder / "5.png")
    return sorted(folder.iterdir())


def test_it_predicts(trained: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, out = trained
    files = pictures(tmp_path / "photos")
    command = ["predict", "--ckpt", str(out / "last.ckpt"), str(tmp_path / "photos"), "--out", str(tmp_path / "found")]
    assert main([*command, "--min-score", "0"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in lines] == list(map(str, files))
    sizes = {"1": (60, 40), "2": (60, 40), "3": (60, 40), "4": (60, 40), "5": (60, 1)}
    for stem, (width, height) in sizes.items():
        with Image.open(tmp_path / "found" / "pictures" / f"{stem}.png") as picture:
            assert picture.width == width
            assert picture.height >= height
    if task == "segmentation":
        for line, (stem, size) in zip(lines, sizes.items(), strict=True):
            with Image.open(tmp_path / "found" / "masks" / f"{stem}.png") as mask:
                assert mask.size == size
            assert sum(line["parts"].values()) == pytest.approx(1, abs=1e-5)
    else:
        results = json.loads((tmp_path / "found" / "results.json").read_text())
        assert {one["image_id"] for one in results} <= {1, 2, 3, 4, 5}
        assert len(results) == sum(len(line["objects"]) for line in lines)


def test_a_bad_image_is_told_and_the_rest_is_kept(
    trained: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = trained
    pictures(tmp_path / "photos")
    (tmp_path / "photos" / "3.tif").write_bytes(b"no image")
    command = ["predict", "--ckpt", str(out / "last.ckpt"), str(tmp_path / "photos"), "--out", str(tmp_path / "found")]
    assert main(command) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "3.tif" in captured.err
    assert len(list((tmp_path / "found" / "pictures").iterdir())) == 2
    assert main([*command, "--skip-bad-images"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_results_file_has_the_tested_ap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """pycocotools on what `mpvg predict` wrote says what `mpvg test` says."""
    truth_file = tmp_path / "set" / "instances.json"
    (tmp_path / "set" / "images").mkdir(parents=True)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 4, "name": "a"}, {"id": 9, "name": "b"}],
    }
    for number, seed in enumerate((1, 2, 3), 1):
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / "images" / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 64})
        for one in range(3):
            x, y, w, h = (float(value) for value in random.integers([0, 0, 20, 20], [60, 40, 36, 24]))
            content["annotations"].append({
                "id": 10 * number + one, "image_id": number, "category_id": (4, 9)[one % 2], "iscrowd": 0,
                "bbox": [x, y, w, h], "area": w * h, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            })  # fmt: skip
    truth_file.write_text(json.dumps(content))
    out = tmp_path / "out"
    command = words("detection", out, data__source=tmp_path / "set", trainer__max_epochs=20, model__recipe__lr=0.003,
                    model__recipe__schedule__warmup_steps=0, data__batch_size=3)  # fmt: skip
    assert main(command) == 0
    capsys.readouterr()
    assert main(["test", "--ckpt", str(out / "last.ckpt"), "--json"]) == 0
    tested = json.loads(capsys.readouterr().out)
    found = tmp_path / "found"
    assert (
        main(["predict", "--ckpt", str(out / "last.ckpt"), str(tmp_path / "set" / "images"), "--out", str(found)]) == 0
    )
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        results = truth.loadRes(str(found / "results.json"))
        for kind, prefix in (("bbox", "box"), ("segm", "mask")):
            measured = COCOeval(truth, results, kind)
            measured.evaluate()
            measured.accumulate()
            measured.summarize()
            assert tested[f"{prefix}_ap"] == pytest.approx(measured.stats[0], abs=1e-6)
            assert tested[f"{prefix}_ap50"] == pytest.approx(measured.stats[1], abs=1e-6)
    assert tested["box_ap50"] > 0


def test_the_last_word_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "seg.yaml").write_text("task: segmentation\nckpt: a.ckpt\n")
    config = str(tmp_path / "seg.yaml")
    assert value_named("task", []) is None
    assert value_named("task", ["--task", "detection", "--task=segmentation"]) == "segmentation"
    assert value_named("task", ["--task", "detection", "--config", config]) == "segmentation"
    assert value_named("task", ["-c", config, "--task", "detection"]) == "detection"
    assert value_named("ckpt", ["--ckpt", "b.ckpt", f"--config={config}"]) == "a.ckpt"
    assert main(["test"]) == 2
    assert "ckpt" in capsys.readouterr().err
    given = ["--task", "segmentation", "--data", "nowhere", "--task", "detection"]
    assert main(["fit", *given, "--data.crop_size", "3"]) == 2
    assert "crop_size" in capsys.readouterr().err  # which detection has not


def test_another_set_is_tested_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the files nor the choice of images that the training named follow onto it."""
    for name, count in (("a", 2), ("b", 3)):
        write_coco(tmp_path / name, objects() if count == 3 else objects(images=objects()["images"][:2]))
    a = tmp_path / "a"
    files = {"data__train_annotations": a / "instances.json", "data__train_images": a / "images", "data__limit": 1}
    assert main(words("detection", tmp_path / "out", **files, data__batch_size=1)) == 0
    capsys.readouterr()
    checkpoint = str(tmp_path / "out" / "last.ckpt")
    assert main(["test", "--ckpt", checkpoint, "--data", str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["data"], found["images"]) == ("b", 3)
    assert main(["test", "--ckpt", checkpoint, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1
    b = tmp_path / "b"
    other = ["--data.val_annotations", str(b / "instances.json"), "--data.val_images", str(b / "images")]
    assert main(["test", "--ckpt", checkpoint, *other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 3


def test_a_set_of_one_image_is_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco(tmp_path / "one")
    one = {"data__source": tmp_path / "one", "data__limit": 1, "data__batch_size": 2}
    assert main(words("segmentation", tmp_path / "out", **one)) == 2
    assert "--data.repeats 2" in capsys.readouterr().err
    assert main(words("segmentation", tmp_path / "twice", **one, data__repeats=2)) == 0
    assert "2 images to train on" in capsys.readouterr().out


def test_pure_half_precision_is_refused_for_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("detection", tmp_path / "out", trainer__precision="bf16-true")) == 2
    assert "name bf16-mixed" in capsys.readouterr().err


def test_names_of_predictions_differ() -> None:
    files = [Path(name) for name in ("x/a-2.png", "x/a.jpg", "x/a.png", "y/A.png", "b.png")]
    assert _different_stems(files) == ["a-2", "a", "a-3", "A-4", "b"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["fit", "--task", "detectoin"], "task 'detectoin' is unknown (did you mean 'detection'?)"),
        (["fit", "--task", "detection", "--img-size", "64"], "img_size"),
        (["fit", "--task", "detection", "--model.name", "mpvg_vit_nano"], "'mpvg_vit_nano' gives no four maps"),
        (["fit", "--task", "segmentation", "--data", "nowhere"], "nowhere"),
        (["fit", "--model.name", "mpvg_vit_adapter_tiny_patch16"], "no head"),
        (["compare", "--model", "mpvg_vit_adapter_tiny_patch16"], "no head"),
        (["cost", "mpvg_vit_adapter_tiny_patch16"], "unknown"),
    ],
)
def test_bad_words(command: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*command, "--out", str(tmp_path / "out")] if command[0] != "cost" else command
    assert main(given) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len(told.splitlines()) == 1


def test_commands_for_classifiers_say_so(
    trained: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = trained
    checkpoint = str(out / "last.ckpt")
    commands = (
        ["export", checkpoint], ["share", checkpoint, str(tmp_path / "shared")],
        ["analyze", checkpoint, "--out", str(tmp_path / "a")],
        ["predict", "--ckpt", checkpoint, "--features", str(pictures(tmp_path / "photos")[0])],
    )  # fmt: skip
    for command in commands:
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "classification" in told
        assert len(told.splitlines()) == 1


def test_a_trunk_starts_from_a_checkpoint_of_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A classification checkpoint of another grid, through the command line."""
    arguments = "{embed_dim: 24, depth: 4, num_heads: 2}"
    fit = ["fit", "--debug", "true", "--model.name", "mpvg_deit_tiny_patch16_224", "--model.arguments", arguments,
           "--img-size", "32", "--out", str(tmp_path / "classifier"), "--trainer.accelerator", "cpu"]  # fmt: skip
    assert main(fit) == 0
    start = tmp_path / "classifier-debug" / "best.ckpt"
    capsys.readouterr()
    assert main(words("detection", tmp_path / "out", model__pretrained=start, debug="true")) == 0
    told = capsys.readouterr().out
    assert f"It starts from {start}" in told
    assert "Last LN is left out" in told
    _, model = load_any(tmp_path / "out-debug" / "last.ckpt")
    _, source = load_any(start)
    own, theirs = model.backbone.body.trunk.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight
    assert torch.allclose(own, theirs, atol=1e-5)  # two tiny steps later
