"""The document's tables and code are what its numbers and the library give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import augmentation as speed
import augmentation_tables
from mpvg.bench import turns
from tables import filled, rows


def test_tables_are_what_their_numbers_give() -> None:
    document = augmentation_tables.DOCUMENT.read_text(encoding="utf-8")
    assert set(re.findall("<!-- table: (.+?) -->", document)) == set(augmentation_tables.TABLES)
    assert filled(document, augmentation_tables.TABLES) == document


def test_the_code_runs() -> None:
    found: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(.*?)```", augmentation_tables.DOCUMENT.read_text(encoding="utf-8"), re.S)
    exec(compile(code, "augmentation.md", "exec"), found)
    assert found["pixels"].dtype == torch.uint8
    assert found["images"].shape == (128, 3, 32, 32)


def test_speed_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, out = torch.get_num_threads(), tmp_path / "speed.csv"
    monkeypatch.setattr("sys.argv", ["augmentation", "--rounds", "6", "--batch", "2", "--out", str(out)])
    monkeypatch.setattr(turns, "SHORTEST", 0)
    monkeypatch.setattr(speed, "keep_memory", lambda: None)
    try:
        speed.main()
    finally:
        torch.set_num_threads(threads)
    assert list(rows(out)[0]) == list(rows(augmentation_tables.SPEED)[0])
    assert [row["work"] for row in rows(out)] == [row["work"] for row in rows(augmentation_tables.SPEED)]
    assert all(float(row["milliseconds"]) > 0 for row in rows(out))
