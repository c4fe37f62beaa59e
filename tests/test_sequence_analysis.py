"""`mpvg analyze` of text and series: its own data, its report's words, and one line for what cannot be."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from findings import make_findings
from mpvg.analysis.figures.grids import similarity
from mpvg.analysis.figures.maps import shown_map
from mpvg.analysis.measures import position_similarity
from mpvg.analysis.record import correlation_by_block
from mpvg.analysis.samples import spread
from mpvg.analysis.sequences import InRandomOrder, SequencesSeen, load_sequences
from mpvg.analysis.study import passes, study
from mpvg.analysis.subjects import load_subjects
from mpvg.checkpoint import load_any
from mpvg.cli import main
from mpvg.data.sequences.batches import pad, shuffled
from mpvg.errors import UserError
from mpvg.report.analysis_missing import common_notes, notes
from mpvg.report.analysis_tables import bands, headline
from mpvg.report.svg import PRINT
from sequence_models import checkpoint, data_of
from test_analysis_inputs import checkpoint as of_images

KIND = pytest.mark.parametrize("kind", ["text", "series"])


def analyze(out: Path, *words: str | Path) -> int:
    return main(["analyze", *map(str, words), "--out", str(out)])


def seen_by(path: Path, kind: str, rows: list[int]) -> tuple[Any, list[Tensor], Tensor]:
    """Return a checkpoint's model, what it is given of the test split, and the labels."""
    found, model = load_any(path)
    card: Any = found
    split = data_of(kind)[1].test.take(np.array(rows))
    return model, card.preprocessing(split.items), torch.from_numpy(split.labels)


@KIND
def test_a_checkpoint_is_analysed_on_its_own_test_split(kind: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "runs" / "mpvg-seed0.safetensors", kind)
    (subject,) = load_subjects([str(tmp_path)])
    assert (subject.task, subject.label, subject.seed) == (kind, "mpvg", 0)
    source, data = data_of(kind)
    samples = load_sequences(source, task=kind, count=25, channels=data.channels, impute=False)
    told: list[None] = []
    found = study(subject, samples, causal_images=6, report=lambda: told.append(None))
    assert len(told) == passes(subject, samples, causal_images=6)
    model, items, labels = seen_by(path, kind, spread(len(data.test), 25))
    order = sorted(range(25), key=lambda row: len(items[row]))
    expected = correlation_by_block(model, *pad([items[row] for row in order]))
    assert {block.block: block.correlation.value for block in found.blocks if block.position is not None} == (
        pytest.approx(expected, abs=1e-6)
    )
    with torch.inference_mode():
        answers = torch.stack([model(item[None])[0].argmax() for item in items])
    assert found.accuracy == pytest.approx((answers == labels).double().mean().item())
    assert (found.images, found.unit, found.one) == (25, data.unit, {"text": "sentence", "series": "series"}[kind])
    rows = found.blocks[0].tokens.shape[0]
    assert [block.grid for block in found.blocks] == [(1, rows)] * 3
    assert found.last is not None
    assert found.initial is not None
    assert found.last.grid == found.initial_grid == (1, rows)
    assert found.last.position is not None
    assert {len(found.last.before), len(found.last.after), len(found.last.position), len(found.initial)} == {rows}
    assert found.norms is None
    assert found.causal is not None
    assert (found.causal.images, found.causal.interventions[-1].name) == (6, "all")
    said = [note for note in found.notes if "assumption" in note]
    assert len(said) == (1 if kind == "text" else 0)  # the series have one length, and all rows
    if said:
        lengths = [len(item) for item in items]
        assert f"Maps have {rows} rows" in said[0]
        assert f"the longest sentence reaches {max(lengths)}" in said[0]
        assert rows == sorted(lengths)[25 // 2]


def test_the_readout_at_the_last_norm_is_that_of_the_sequences(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.safetensors", "text")
    (subject,) = load_subjects([str(path)])
    samples = load_sequences(["words"], task="text", count=9, channels=None, impute=False)
    found = study(subject, samples)
    model, items, _ = seen_by(path, "text", spread(600, 9))
    vectors: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, args: vectors.append(args[0][0]))
    with torch.inference_mode():
        for item in items:
            model(item[None])
    assert found.last is not None
    assert found.last.constant is not None
    table = model.positions().last[0].detach().double()
    constant = torch.stack([table[: len(item)].mean(dim=0) for item in items]).mean(dim=0)
    torch.testing.assert_close(found.last.constant, constant)
    read = torch.stack(vectors).double().mean(dim=0)
    beta = found.last.beta
    assert beta is not None
    assert found.last.statistics.var_beta_and_constant == pytest.approx((beta + constant).var(correction=0).item())
    after = read - constant
    before = samples_before(model, items)
    cosine = torch.cosine_similarity(before, after, dim=0).item()
    assert found.last.statistics.cosine == pytest.approx(cosine, abs=1e-5)
    with_it = torch.cosine_similarity(before, read, dim=0).item()
    assert found.last.statistics.cosine_with_position == pytest.approx(with_it, abs=1e-5)


def samples_before(model: Any, items: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.stack([model.encode(item[None])[0][0].double().mean(dim=0) for item in items]).mean(dim=0)


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on two seeds of a model of text."""
    folder = tmp_path_factory.mktemp("compared")
    for seed in (0, 1):
        checkpoint(folder / "runs" / f"mpvg-seed{seed}.safetensors", "text", seed=seed)
    assert analyze(folder / "look", folder, "--images", "30", "--causal-images", "4") == 0
    return folder / "look"


def test_the_report_speaks_of_sentences(looked: Path) -> None:
    page = (looked / "report.html").read_text()
    words = re.sub(r"<style.*?</style>|<svg.*?</svg>|<pre>.*?</pre>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert not re.search(r"\bimages?\b|picture", words.replace("the paper has images of one size", ""), re.IGNORECASE)
    for part in ("30 of 600 test sentences of synthetic word order", "Per sentence, averaged", "4 sentences; accuracy"):
        assert part in words, part
    assert words.count("Maps have") == 1  # which is said once for all models
    drawn = {path.stem for path in (looked / "figures").iterdir()}
    assert "position_similarity" in drawn
    assert "causal_test" in drawn
    assert not any(name.startswith("figure7") for name in drawn)  # token norms are drawn over pictures
    assert "Token norms" not in words


def test_the_files_hold_what_was_found(looked: Path) -> None:
    found = json.loads((looked / "analysis.json").read_text())
    assert [(model["label"], model["unit"], model["images"]) for model in found["models"]] == [
        ("mpvg, seed 0", "sentences", 30),
        ("mpvg, seed 1", "sentences", 30),
    ]
    with (looked / "measures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    of_file = {row["block"]: float(row["value"]) for row in rows if row["label"] == "mpvg, seed 1"
               and row["measure"] == "correlation"}  # fmt: skip
    receives = [block for block in found["models"][1]["blocks"] if block["receives"]]
    assert of_file == {block["name"]: block["correlation"]["value"] for block in receives}
    assert {block["rows"] for block in receives} == {receives[0]["grid"][1]}
    claims = {one["claim"]: one["seeds"] for one in found["statements"]}
    assert claims["Positions counterbalance the tokens"] == 2
    with (looked / "statements.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(found["statements"])


def test_other_series_can_be_named_and_are_cut(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("mpvg.analysis.analyze.write_analysis_report", lambda *args, **options: [])
    path = checkpoint(tmp_path / "a.safetensors", "series")
    out = tmp_path / "look"
    assert analyze(out, path, "--data", "GunPoint", "--images", "5", "--causal-images", "2") == 0
    printed = capsys.readouterr().out
    assert "5 of 150 test series of GunPoint" in printed
    assert "For mpvg, 5 of 5 series are cut to the length that it takes." in " ".join(printed.split())
    (model,) = json.loads((out / "analysis.json").read_text())["models"]
    assert model["unit"] == "series"
    own = json.loads((out / "analysis.json").read_text())["command"]
    assert "--data GunPoint --images 5" in own
    for name in ("train", "test"):
        Path(tmp_path / f"{name}.csv").write_text("label,a,b,c\n1,1,2,4\n2,2,,1\n1,0,3,4\n2,5,1,1\n1,3,2,4\n")
    files = [tmp_path / "train.csv", tmp_path / "test.csv"]
    assert analyze(out, path, "--data", *files, "--causal-images", "0") == 2
    assert "--impute" in capsys.readouterr().err
    assert analyze(out, path, "--causal-images", "0", "--impute", "--data", *files) == 0
    assert "--impute" in json.loads((out / "analysis.json").read_text())["command"]


def test_tokens_are_put_in_the_order_that_a_model_was_trained_with(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.safetensors", "series", shuffle_tokens=True, seed=3)
    (subject,) = load_subjects([str(path)])
    assert isinstance(subject.preprocessing, InRandomOrder)
    samples = load_sequences(["ItalyPowerDemand"], task="series", count=4, channels=1, impute=False)
    (((x, _), _),) = samples.batches(subject.preprocessing)
    plain = subject.preprocessing.preprocessing(samples.split.items)
    assert torch.equal(x, torch.stack(shuffled(plain, patch_size=2)))
    assert not torch.equal(x, torch.stack(plain))
    assert any("random order" in note for note in study(subject, samples).notes)


def test_what_is_drawn_by_number_does_not_depend_on_how_many_are_asked() -> None:
    samples = load_sequences(["words"], task="text", count=7, channels=None, impute=False)

    class Numbered:
        def __call__(self, items: tuple[str, ...]) -> list[Tensor]:
            return [torch.full((3,), number) for number in range(len(items))]

        def count_cut(self, items: tuple[str, ...]) -> int:
            return 0

    preprocessing: Any = Numbered()
    (((x, mask), labels),) = samples.batches(preprocessing, count=3)
    assert mask is None
    assert x[:, 0].tolist() == [0, 3, 6]
    assert labels.tolist() == samples.split.labels[[0, 3, 6]].tolist()
    assert samples.batch_count(preprocessing) == 1
    assert samples.remarks("mpvg", preprocessing) == []


def test_seeds_are_one_series_though_each_split_has_its_own_words(tmp_path: Path) -> None:
    for seed, words in ((0, 1200), (1, 3)):
        checkpoint(tmp_path / "runs" / f"gap-seed{seed}.safetensors", "text", scheme="gap", seed=seed, words=words)
    found = load_subjects([str(tmp_path)])
    assert [one.label for one in found] == ["gap, seed 0", "gap, seed 1"]
    assert found[0].model.patch_embed.vocab_size > found[1].model.patch_embed.vocab_size


def test_a_model_of_other_classes_counts_unchanged_answers(tmp_path: Path) -> None:
    (subject,) = load_subjects([str(checkpoint(tmp_path / "a.safetensors", "text"))])
    own = load_sequences(["words"], task="text", count=5, channels=None, impute=False)
    found = study(subject, SequencesSeen(own.note, own.unit, own.split, ("a", "b", "c")), causal_images=2)
    assert found.accuracy is None
    assert found.causal is not None
    assert found.causal.accuracy is None
    assert any("classes of these sentences" in note for note in found.notes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mpvg_sequence:gap"], "mpvg_sequence:gap: a model of text or series .* name a checkpoint"),
        (["mpvg_sequence", "--scheme", "gap"], "name a checkpoint of mpvg compare"),
        (["text", "--img-size", "8"], "--img-size is for images, and text is a model of text: leave it out"),
        (["series", "--pretrained"], "--pretrained is for images, and series is a model of series"),
        (["text", "--show", "0"], "--show is for images"),
        (["text", "--skip-bad-images"], "--skip-bad-images is for images"),
        (["text", "--compare", "images"], "text is a model of text, images of images: .* one by one"),
        (["images", "--compare", "series"], "images is a model of images, series of series"),
        (["text", "--compare", "series"], "text is a model of text, series of series"),
        (["text", "--data", "nowhere"], "nowhere"),
        (["text", "--data", "words", "words"], "sentences come from one folder"),
        (["images", "--data", "digits", "digits"], "images come from one source"),
        (["series", "--data", "BasicMotions"], "series of 6 channels, and the model takes 1"),
        (["series", "--data", "digits"], "digits"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("text", "series"):
        if kind in words:
            checkpoint(tmp_path / kind / "runs" / "mpvg.safetensors", kind)
    if "images" in words:
        of_images(tmp_path / "images" / "runs" / "mpvg.safetensors")
    assert analyze(tmp_path / "look", *words) == 2
    printed = re.sub(r"(text|series|images)/runs/mpvg\.safetensors", r"\1", capsys.readouterr().err)
    assert re.search(message, printed), printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "look").exists()


def test_long_maps_of_sequences_are_averaged_over_neighbours() -> None:
    values = torch.arange(1024.0).double()[:, None].repeat(1, 2)
    shown = shown_map(values, (1, 1024))
    assert shown.shape == (256, 2)
    assert shown[:, 0] == pytest.approx(np.arange(1024).reshape(256, 4).mean(axis=1))
    assert len(shown_map(values, (32, 32))) == 256
    with pytest.raises(UserError, match="no test"):
        load_sequences_without_any()


def load_sequences_without_any() -> None:
    from mpvg.analysis import sequences

    data = data_of("text")[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "load_text", lambda source: replace(data, test=data.test.take(np.array([], int))))
        load_sequences(["words"], task="text", count=3, channels=None, impute=False)


def test_positions_of_sequences_are_compared_all_with_all() -> None:
    found = make_findings(grid=(1, 9))
    figure = similarity([found])
    assert figure is not None
    drawn = [np.asarray(image.get_array()) for axes in figure.draw(PRINT).axes[1:] for image in axes.images]
    assert [one.shape for one in drawn] == [(9, 9)] * 4
    assert found.initial is not None
    expected = position_similarity(found.initial)
    assert expected is not None
    assert drawn[0] == pytest.approx(expected.numpy())


def test_bands_are_over_what_was_analysed() -> None:
    pvg, mpvg = (replace(make_findings(name), unit="series") for name in ("pvg", "mpvg"))
    assert bands([pvg, mpvg]).endswith("intervals over series.")
    assert "over series: " in headline([mpvg])


def test_a_note_on_all_models_is_said_once() -> None:
    pvg, mpvg = (replace(make_findings(name), notes=("Of all.", f"Of {name}.")) for name in ("pvg", "mpvg"))
    assert list(notes([pvg, mpvg])) == ["Of all.", "pvg: Of pvg.", "mpvg: Of mpvg."]
    assert list(notes([pvg])) == common_notes([pvg]) == ["Of all.", "Of pvg."]
    assert common_notes([pvg, mpvg]) == ["Of all."]
