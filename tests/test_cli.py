"""The command line around the commands: help, exit codes, what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm

from mpvg import SCHEMES, __version__
from mpvg.cli import main
from mpvg.commands import options


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["compare", "--help"],
        ["analyze", "--help"],
        ["export", "--help"],
        ["cost", "--help"],
        ["bench", "--help"],
        ["fit", "--help"],
        ["test", "--help"],
        ["predict", "--help"],
    ],
)
def test_help_has_examples(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "examples:\n  mpvg " in printed
    assert printed.startswith(f"usage: mpvg {words[0]}" if len(words) > 1 else "usage: mpvg [")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mpvg {__version__}\n"


def test_models_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["models", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(listed) == timm.list_models("mpvg_*")
    tiny = listed["mpvg_deit_tiny_patch16_224"]
    assert (tiny["input_size"], tiny["parameters"]["mpvg"]) == ([3, 224, 224], 5_721_640)
    assert set(listed["mpvg_vit_nano"]["parameters"]) == set(SCHEMES)
    monkeypatch.setattr(timm, "list_models", lambda *_: ["mpvg_deit_tiny_patch16_224"])
    assert main(["models"]) == 0
    assert "5,721,640" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"), [([], "required: COMMAND"), (["comprae"], "'comprae'"), (["models", "--no"], "--no")]
)
def test_unknown_commands(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_a_missing_extra_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    assert main([command]) == 2
    assert "jsonargparse: pip install 'mpvg[train]'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["compare"], ["analyze", "mpvg_vit_nano", "--out", "look"]])
def test_what_reports_need_is_named(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    assert main(words) == 2
    assert f"mpvg {words[0]} needs jinja2, matplotlib, " in capsys.readouterr().err


def test_a_reader_that_has_had_enough(tmp_path: Path) -> None:
    command = f"{sys.executable} -m mpvg models --json | head -c 1"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert ended.stderr == ""
