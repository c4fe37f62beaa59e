"""`mpvg compare` over text and series: what images have too, what they have not, and a line for what cannot work."""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpvg.checkpoint import load_any
from mpvg.cli import main
from mpvg.compare import training
from mpvg.compare.feed import feed_of
from mpvg.compare.folder import RunFolder
from mpvg.compare.inputs import load_inputs
from mpvg.compare.plan import plan
from mpvg.compare.rates import Job
from mpvg.compare.settings import SequenceOptions, Settings
from mpvg.create import starting_point
from mpvg.data.sequences.preprocessing import TextPreprocessing
from mpvg.sequence_card import SequenceCard

WORDS = ["the", "a", "dog", "cat", "bird", "saw", "heard", "met", "near", "old", "small", "very"]


def sentence(random: np.random.Generator, label: int) -> str:
    """Before or after: whether "dog" comes ahead of "cat"."""
    filler = list(random.choice(WORDS, random.integers(1, 9)))
    first, second = ("DOG", "CAT") if label else ("CAT", "DOG")
    at = int(random.integers(0, len(filler) + 1))
    return " ".join([*filler[:at], first, *filler[at:], second])


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("reviews"), np.random.default_rng(0)
    for name, count in (("train", 48), ("dev", 16), ("test", 20)):
        rows = [f"{sentence(random, i % 2)}\t{'after' if i % 2 else 'before'}" for i in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel"] * (name == "train") + rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Rising and falling series of several lengths."""
    folder, random = tmp_path_factory.mktemp("waves"), np.random.default_rng(0)
    files = folder / "waves_TRAIN.csv", folder / "waves_TEST.csv"
    for file, count in zip(files, (30, 12), strict=True):
        lines = []
        for i in range(count):
            slope = np.linspace(-1, 1, int(random.integers(9, 14))) * (1 if i % 2 else -1)
            values = slope + random.normal(0, 0.1, len(slope))
            lines.append(",".join([("up" if i % 2 else "down"), *(f"{value:.4f}" for value in values)]))
        file.write_text("\n".join(lines))
    return files


def settings(task: str, *data: str | Path, **changes: Any) -> Settings:
    names = ("shuffle_tokens", "max_length", "patch_size")
    of_sequences = {name: changes.pop(name) for name in names if name in changes}
    fixed: dict[str, Any] = {"model": "mpvg_sequence", "epochs": 2, "batch_size": 8, "lrs": (3e-3,)}
    asked = SequenceOptions(task=task, **of_sequences)
    return Settings(data=tuple(map(str, data)), sequences=asked, **{**fixed, **changes})


def test_a_comparison_of_text(reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["compare", "--task", "text", "--data", str(reviews), "--schemes", "default,mpvg", "--out", str(out)]
    words += ["--epochs", "2", "--batch-size", "8", "--workers", "1"]
    assert main([*words, "--seeds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "shuffled %" in printed
    assert "48" not in printed  # nothing of images or pixels is told
    assert not re.search(r"\bimages?\b|pixels|shifts", printed)
    first = (out / "runs" / "mpvg-seed0.json").read_bytes()
    assert main([*words, "--seeds", "2", "--json"]) == 0
    told = capsys.readouterr()
    assert "2 of 4 runs had finished" in told.err
    assert (out / "runs" / "mpvg-seed0.json").read_bytes() == first
    summary = json.loads(told.out)
    assert summary["data"]["unit"] == "sentences"
    assert summary["data"]["lengths"][0] >= 3
    assert summary["schemes"][1]["runs"][0]["correlation"]["block"] == [1, 2, 3, 4, 5]
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["scheme"], row["seed"]) for row in rows] == [
        ("default", "0"), ("default", "1"), ("mpvg", "0"), ("mpvg", "1"),
    ]  # fmt: skip
    assert all(0 <= float(row["shuffled_accuracy"]) <= 1 for row in rows)
    assert rows[0]["task"] == "text"
    assert "img_size" not in rows[0]
    assert "rand_augment" not in rows[0]

    page = " ".join(html.unescape(re.sub("<[^>]+>", " ", (out / "report.html").read_text())).split())
    for words_ in ("20 test sentences", "training sentences 48", "vocabulary", "Shuffled", "--task text --data"):
        assert words_ in page, words_
    assert not re.search(r"\b(images?|pixels)\b", page)

    card, model = load_any(out / "runs" / "mpvg-seed1.safetensors")
    assert isinstance(card, SequenceCard)
    assert (card.task, card.scheme, card.classes) == ("text", "mpvg", ("after", "before"))
    one = settings("text", reviews)
    _, data = load_inputs(one, ["mpvg"])
    feed = feed_of(one, data, data.train, start=starting_point("mpvg_sequence", "mpvg"))
    outcome = training.evaluate(model, feed.readings(feed.place(data.test)))
    assert outcome.accuracy == float(rows[3]["accuracy"])

    for command, what in (
        (["predict", str(reviews), "--ckpt"], "is a checkpoint of text, and mpvg predict looks at images"),
        (["test", "--ckpt"], "task 'text' is none of mpvg test's"),
        (
            ["export", "--out", "x.onnx"],
            "a checkpoint of text, and this is for classification of images: use mpvg analyze",
        ),
    ):
        checkpoint = str(out / "runs" / "mpvg-seed1.safetensors")
        image = [str(reviews / "x.png")] if command[0] == "predict" else []
        words = [command[0], *image, *command[2:], checkpoint] if image else [*command, checkpoint]
        (reviews / "x.png").touch()
        assert main(words) == 2, words
        assert what in capsys.readouterr().err


def test_a_comparison_of_series(waves: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--task", "series", "--data", *map(str, waves), "--schemes", "gap,mpvg", "--seeds", "1"]
    words += ["--epochs", "12", "--lr", "0.001,0.003", "--workers", "1", "--patch-size", "2"]
    assert main([*words, "--out", str(tmp_path / "one"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [len(entry["tried"]) for entry in summary["lr_trials"]["by_scheme"]] == [2, 2]
    assert summary["data"]["patch_size"] == 2
    assert summary["data"]["in_chans"] == 1
    assert shlex_words(summary["command"])[:6] == ["mpvg", "compare", "--task", "series", "--data", str(waves[0])]
    assert "--patch-size 2" in summary["command"]
    assert any("validation split" in note.lower() and "series" in note for note in summary["notes"])


def shlex_words(command: str) -> list[str]:
    return command.split(" ")


def test_the_task_is_learned_and_needs_order(waves: tuple[Path, Path]) -> None:
    one = settings("series", *waves, epochs=30)
    _, data = load_inputs(one, ["mpvg"])
    record = training.train_and_test(one, Job("mpvg", 0, 3e-3), data, lambda done, loss: None)
    assert record["accuracy"] == 1.0
    assert record["shuffled_accuracy"] < 0.9
    mixed = settings("series", *waves, epochs=30, shuffle_tokens=True)
    assert training.train_and_test(mixed, Job("mpvg", 0, 3e-3), data, lambda done, loss: None)["accuracy"] < 0.9


def test_one_seed_gives_schemes_the_same_batches_and_start(reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    true_step = training.take_step

    def spy(model: Any, optimizer: Any, inputs: Any, targets: Any, recipe: Any) -> float:
        seen.append((inputs[0], model.blocks[0].attn.qkv.weight.detach().clone()))
        return true_step(model, optimizer, inputs, targets, recipe)

    monkeypatch.setattr(training, "take_step", spy)
    one = settings("text", reviews)
    _, data = load_inputs(one, ["mpvg"])
    starts = {}
    for scheme, seed in (("mpvg", 0), ("default", 0), ("mpvg", 1)):
        seen.clear()
        training.try_rate(one, Job(scheme, seed, 1e-3, trial=True), data, lambda done, loss: None)
        assert len(seen) == 12
        starts[scheme, seed] = seen[0]
    for ours, other in zip(starts["mpvg", 0], starts["default", 0], strict=True):
        assert torch.equal(ours, other)
    assert starts["mpvg", 0][0].shape != starts["mpvg", 1][0].shape or not torch.equal(
        starts["mpvg", 0][0], starts["mpvg", 1][0]
    )


def test_runs_are_the_same_to_the_last_bit(reviews: Path) -> None:
    one = settings("text", reviews)
    _, data = load_inputs(one, ["lape"])
    trained = [training.train(one, Job("lape", 0, 1e-3), data, lambda done, loss: None) for _ in range(2)]
    for ours, again in zip(*(run.built.model.parameters() for run in trained), strict=True):
        assert torch.equal(ours, again)


def test_words_are_those_of_the_training_split(reviews: Path) -> None:
    one = settings("text", reviews)
    _, data = load_inputs(one, ["gap"])
    feed: Any = feed_of(one, data, data.train.take(np.arange(10)), start=starting_point("mpvg_sequence", "gap"))
    assert isinstance(feed.preprocessing, TextPreprocessing)
    known = set(json.loads(feed.preprocessing.tokenizer)["model"]["vocab"])
    spoken = {word.lower() for item in data.train.items[:10] for word in str(item).split()}
    assert known <= spoken | {"[PAD]", "[UNK]"}


def test_long_sequences_are_recorded_a_few_at_a_time(tmp_path: Path) -> None:
    for name, count in (("train", 40), ("test", 40)):
        rows = [" ".join(["word", *(["a"] * 2000 if i == 0 else ["b"])]) + f"\t{i % 2}" for i in range(count)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(rows))
    one = settings("text", tmp_path)
    _, data = load_inputs(one, ["gap"])
    feed = feed_of(one, data, data.train, start=starting_point("mpvg_sequence", "gap"))
    assert 1 <= len(feed.sample(feed.place(data.test))[0]) <= 2**15 // 2000


def test_runs_that_lack_what_is_told_now_are_done_again(reviews: Path, tmp_path: Path) -> None:
    one = settings("text", reviews)
    _, data = load_inputs(one, ["gap"])
    folder, job = RunFolder(tmp_path / "out", one, data), Job("gap", 0, 3e-3)
    (tmp_path / "out" / "runs").mkdir(parents=True)
    record = {**job._asdict(), "hardware": "", "shuffled_accuracy": 0.5}
    folder.file_of(job).write_text(json.dumps(record))
    assert folder.finished(job) == record
    folder.file_of(job).write_text(json.dumps({**job._asdict(), "hardware": ""}))
    assert folder.finished(job) is None


def test_a_plan(reviews: Path, tmp_path: Path) -> None:
    found = plan(settings("text", reviews), ["default", "mpvg"], seeds=2, out=tmp_path / "out", workers=1)
    assert len(found["runs"]) == 4
    assert found["seconds"] > 0
    assert not (tmp_path / "out").exists()


def test_the_embedded_sets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for task, words in (("text", "synthetic word order"), ("series", "ItalyPowerDemand")):
        assert main(["compare", "--task", task, "--dry-run", "--schemes", "gap", "--out", str(tmp_path / task)]) == 0
        assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--task", "text", "--data", "missing"], "missing"),
        (["--task", "text", "--data", "{text}", "{text}"], "name one folder"),
        (
            ["--task", "text", "--data", "{text}", "--model", "mpvg_vit_nano"],
            "'mpvg_vit_nano' is none for --task text: use mpvg_sequence",
        ),
        (["--task", "text", "--data", "{text}", "--impute"], "--impute is for --task series, not for text"),
        (["--task", "text", "--data", "{text}", "--patch-size", "2"], "--patch-size is for --task series"),
        (["--task", "text", "--data", "{text}", "--img-size", "8"], "--img-size is for --task classification"),
        (["--task", "series", "--data", "{wave}"], "{wave}"),
        (["--task", "series", "--data", "{wave}", "{wave}", "--pretrained", "x"], "--pretrained is for --task class"),
        (["--data", "digits", "--max-length", "8"], "--max-length is for --task text or series"),
        (["--data", "digits", "--shuffle-tokens"], "--shuffle-tokens is for --task text or series"),
        (["--data", "digits", "more"], "images have one source"),
        (["--data", "digits", "--model", "mpvg_sequence"], "name --task text or --task series"),
        (["--task", "text", "--data", "{text}", "--schemes", "mpgv"], "'mpgv' is unknown"),
        (["--task", "text", "--data", "{text}", "--schemes", "mpvg:last_norm=9"], "last_norm=9"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value[-2:]),
)
def test_one_line_for_what_cannot_work(
    words: list[str], what: str, reviews: Path, waves: tuple[Path, Path], tmp_path: Path, capsys: Any
) -> None:
    def filled(word: str) -> str:
        return word.format(text=reviews, wave=waves[0])

    assert main(["compare", *map(filled, words), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    assert filled(what) in message
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number(waves: tuple[Path, Path]) -> None:
    from mpvg.errors import NonFiniteLossError

    one = settings("series", *waves, lrs=(1e30,), epochs=4)
    _, data = load_inputs(one, ["gap"])
    run: Callable[[], Any] = lambda: training.train_and_test(one, Job("gap", 0, 1e30), data, lambda done, loss: None)  # noqa: E731
    with pytest.raises(NonFiniteLossError, match="gap, seed 0"):
        run()
