"""`mpvg analyze` end to end, and one line for everything that cannot work."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mpvg.analysis.interventions import delivering
from mpvg.analysis.measures import cosine_similarity
from mpvg.analysis.pictures import load_pictures
from mpvg.analysis.record import correlation_by_block
from mpvg.analysis.study import study
from mpvg.analysis.subjects import load_subjects
from mpvg.checkpoint import load_model, save_safetensors
from mpvg.cli import main
from test_analysis_inputs import GREY, checkpoint


def analyze(out: Path, *words: str | Path, images: int = 24) -> int:
    return main(["analyze", *map(str, words), "--images", str(images), "--out", str(out)])


def read(out: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    with (out / "measures.csv").open(newline="") as file:
        return json.loads((out / "analysis.json").read_text()), list(csv.DictReader(file))


def test_a_checkpoint_is_analysed_on_its_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = checkpoint(tmp_path / "best.safetensors"), tmp_path / "look"
    assert analyze(out, path) == 0
    printed = capsys.readouterr().out
    assert "24 of 360 test images of digits" in printed
    found, rows = read(out)
    (model,) = found["models"]
    assert (model["label"], model["images"], model["folded"]) == ("mpvg", 24, False)

    card, trained = load_model(path)
    pictures = load_pictures("digits", count=24, img_size=None, like=GREY, skip_bad=False)
    (((images,), labels),) = pictures.batches(card.preprocessing, size=24)
    expected = correlation_by_block(trained, images)
    values = {block["block"]: block["correlation"]["value"] for block in model["blocks"] if block["receives"]}
    assert values == pytest.approx(expected, abs=1e-6)
    in_csv = {int(row["block"]): float(row["value"]) for row in rows if row["measure"] == "correlation"}
    assert in_csv == pytest.approx(expected, abs=1e-6)
    banded = [row for row in rows if row["measure"] in ("correlation", "correlation_per_image", "variance_share")]
    assert len(banded) == 3 * 5
    assert all(float(row["low"]) < float(row["value"]) < float(row["high"]) for row in banded)
    with torch.inference_mode():
        answers = trained(images).argmax(dim=1)
        without = trained.positions()
        with delivering(trained, without._replace(blocks=[None] * 6)):
            changed = trained(images).argmax(dim=1)
    assert labels is not None
    assert model["accuracy"] == pytest.approx((answers == labels).double().mean().item())
    everything = model["causal"]["interventions"][-1]
    assert (everything["name"], everything["change"]) == ("all", "removed")
    assert everything["accuracy"] == pytest.approx((changed == labels).double().mean().item())

    drawn = {path.name for path in (out / "figures").iterdir()}
    assert {Path(name).stem for name in drawn if name.endswith(".png")} == {
        Path(name).stem for name in drawn if name.endswith(".svg")
    }
    for part in ("figure2", "figure4", "figure6", "figure7", "figure8", "position_similarity", "causal"):
        assert any(name.startswith(part) for name in drawn), part
    page = (out / "report.html").read_text()
    assert f"{expected[5]:.2f}".replace("-", "\N{MINUS SIGN}") in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_seeds_of_a_comparison_are_set_against_the_papers_statements(tmp_path: Path) -> None:
    for scheme in ("pvg", "mpvg"):
        for seed in (0, 1):
            checkpoint(tmp_path / "runs" / f"{scheme}-seed{seed}.safetensors", scheme=scheme, seed=seed)
    out = tmp_path / "look"
    assert analyze(out, tmp_path, "--causal-images", "0") == 0
    found, _ = read(out)
    assert [model["causal"] for model in found["models"]] == [None] * 4
    by_claim = {one["measure"]: one for one in found["statements"]}
    values = [model["last_norm"]["var_beta"] for model in found["models"]]
    difference = by_claim["var(beta), mpvg minus pvg"]
    assert [model["scheme"] for model in found["models"]] == ["pvg", "pvg", "mpvg", "mpvg"]
    assert difference["estimate"]["value"] == pytest.approx((values[2] - values[0] + values[3] - values[1]) / 2)
    assert difference["seeds"] == 2
    with (out / "statements.csv").open(newline="") as file:
        assert [row["claim"] for row in csv.DictReader(file)] == [one["claim"] for one in found["statements"]]
    assert difference["claim"] in (out / "report.html").read_text()


def test_folding_changes_no_number(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "best.safetensors")
    found = []
    for name, options in (("own", []), ("folded", ["--fold"])):
        assert analyze(tmp_path / name, path, "--causal-images", "8", *options) == 0
        found.append(read(tmp_path / name)[0]["models"][0])
    own, folded = found
    assert (own["folded"], folded["folded"]) == (False, True)
    for a, b in zip(own["blocks"], folded["blocks"], strict=True):
        if a["receives"]:
            assert a["correlation"] == pytest.approx(b["correlation"], abs=1e-4)
    for key in ("var_beta", "var_beta_and_constant", "cosine", "correlation_after"):
        assert own["last_norm"][key] == pytest.approx(folded["last_norm"][key], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_tiny_patch16_224", ["--img-size", "32"]),
        ("mpvg_vit_nano:default", []),
        ("mpvg_ceit_tiny_patch16_224", ["--img-size", "32"]),
        ("mpvg_ceit_tiny_patch16_224:lape", ["--img-size", "32", "--fold"]),
        ("mpvg_swin_tiny_patch4_window7_224:gap_last", []),
        ("mpvg_t2t_vit_7:pvg_cls", ["--img-size", "32"]),
    ],
)
def test_every_kind_of_model(name: str, options: list[str], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "look"
    assert analyze(out, name, "--causal-images", "1", *options, images=2) == 0
    printed = capsys.readouterr().out
    found, _ = read(out)
    notes = found["models"][0]["notes"]
    assert any("random weights" in note for note in notes)
    assert any("images of 8 x 8 pixels, resized to" in note for note in notes)
    delivers = any(block["receives"] for block in found["models"][0]["blocks"])
    assert delivers == ("delivers no position" not in printed)
    assert (out / "figures" / "figure2_tokens_and_positions.png").exists()
    assert "NaN" not in (out / "analysis.json").read_text()


def test_a_model_that_computes_nonsense_is_named_and_the_others_are_kept(tmp_path: Path, capsys: Any) -> None:
    good = checkpoint(tmp_path / "good.safetensors")
    card, model = load_model(good)
    model.blocks[2].mlp.fc1.weight.data.fill_(float("nan"))
    bad, out = tmp_path / "bad.safetensors", tmp_path / "look"
    save_safetensors(bad, card, model)
    assert analyze(out, bad) == 3
    error = capsys.readouterr().err
    assert "bad.safetensors: block 2 puts out NaN" in error
    assert error.count("\n") == 1
    assert analyze(out, bad, "--compare", good, "--causal-images", "0") == 3
    assert "block 2" in capsys.readouterr().err
    assert [one["name"] for one in read(out)[0]["models"]] == [str(good)]
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.ckpt"], "is no file"),
        (["mpvg_vit_nan"], "did you mean 'mpvg_vit_nano'"),
        (["mpvg_vit_nano", "--data", "nowhere"], "no path that exists"),
        (["mpvg_vit_nano", "--data", "empty"], "holds no images"),
        (["mpvg_vit_nano", "--data", "bad.png"], "bad.png cannot be read"),
        (["mpvg_vit_nano", "--img-size", "31"], "31"),
        (["mpvg_vit_nano", "--images", "0"], "'0' is not a whole number"),
        (["mpvg_vit_nano", "--scheme", "mpgv"], "mpgv"),
        (["mpvg_vit_nano", "--out", "taken"], "holds other files"),
        (["mpvg_vit_nano", "--out", "compared"], "results of another command"),
        (["mpvg_vit_nano", "--images", "3", "--show", "0", "3"], "3 images are analysed"),
        (["mpvg_vit_nano", "--causal-images", "-1"], "from 0 to"),
        (["junk.ckpt"], "junk.ckpt"),
        (["resnet18"], "no plain vision transformer"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "taken", "compared"):
        os.mkdir(folder)
    Path("compared/config.json").write_text('{"epochs": 3}')
    Path("junk.ckpt").write_text("junk")
    Path("taken/thesis.txt").write_text("precious")
    Path("bad.png").write_bytes(b"no image")
    own = [] if "--out" in words else ["--out", "look"]
    assert main(["analyze", *words, *own]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_analysis_replaces_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "look"
    path = checkpoint(tmp_path / "best.safetensors", scheme="gap")
    assert analyze(out, checkpoint(tmp_path / "other.safetensors"), "--causal-images", "0", images=4) == 0
    before = {file.name for file in (out / "figures").iterdir()}
    assert analyze(out, path, images=4) == 0
    after = {file.name for file in (out / "figures").iterdir()}
    assert after < before
    assert not any(name.startswith("figure4") for name in after)
    report = (out / "report.html").read_bytes()
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert analyze(out, path, "--data", tmp_path / "bad.png") == 2
    assert (out / "report.html").read_bytes() == report  # what fails leaves it as it was


def test_study_of_a_class_token_reads_its_row(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "best.safetensors", scheme="pvg_cls:last_norm=0")
    (subject,) = load_subjects([str(path)])
    pictures = load_pictures("digits", count=12, img_size=None, like=GREY, skip_bad=False)
    found = study(subject, pictures, shown=[1, 4])
    model = subject.model
    (((x,), labels),) = pictures.batches(GREY, size=12)
    seen: list[torch.Tensor] = []
    model.norm.register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    with torch.inference_mode():
        answers = model(x).argmax(dim=1)
    before, after = (maps.double() for maps in seen)
    last = model.positions().last[0].detach().double()
    assert found.last is not None
    assert found.last.constant is not None
    torch.testing.assert_close(found.last.constant, last[0])
    torch.testing.assert_close(found.last.position, last[1:])
    torch.testing.assert_close(found.last.before, before[:, 1:].mean(dim=0), atol=1e-5, rtol=1e-5)
    rows = before[:, 0].mean(dim=0), after[:, 0].mean(dim=0)
    statistics = found.last.statistics
    assert statistics.cosine == pytest.approx(cosine_similarity(*rows), abs=1e-6)
    assert statistics.cosine_with_position == pytest.approx(cosine_similarity(rows[0], rows[1] + last[0]), abs=1e-6)
    assert found.norms is not None
    assert found.norms.before[1].ravel() == pytest.approx(before[4, 1:].norm(dim=1).numpy(), rel=1e-5)
    assert found.norms.after[1].ravel() == pytest.approx((after[4, 1:] + last[1:]).norm(dim=1).numpy(), rel=1e-5)
    assert labels is not None
    assert found.accuracy == pytest.approx((answers == labels).double().mean().item())
    strangers = study(subject, replace(pictures, classes=tuple("abcdefghij")), causal_images=2)
    assert strangers.accuracy is None
    assert strangers.causal is not None
    assert strangers.causal.accuracy is None
    assert strangers.norms is None


def test_what_was_found_can_be_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "look"
    assert analyze(out, checkpoint(tmp_path / "best.safetensors", scheme="gap"), "--json", images=4) == 0
    assert json.loads(capsys.readouterr().out) == read(out)[0]


def test_what_is_stopped_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def stopped(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mpvg.analysis.analyze.study", stopped)
    assert analyze(tmp_path / "look", checkpoint(tmp_path / "best.safetensors")) == 130
    assert capsys.readouterr().err == "mpvg: stopped; an earlier analysis in the folder is as it was.\n"
