"""What the documents make of measured rows, on rows made up for it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

import bench_tables
import cost_figures
import data_loading
from mpvg.bench.heats import COLUMNS
from mpvg.cost import hours
from mpvg.report.svg import PRINT, print_files, style

TINY = "mpvg_deit_tiny_patch16_224"


def row(**values: Any) -> dict[str, str]:
    usual = {
        "hardware": "Old Processor", "device": "cpu", "threads": 2, "dtype": "float32", "mode": "eager",
        "work": "inference", "model": TINY, "scheme": "mpvg", "variant": "folded", "size": "", "against": "default",
        "batch": 8, "ratio": 1.0123, "low": 1.0049, "high": 1.0201, "milliseconds": 101.2, "milliseconds_against": 100,
        "rounds": 30, "noise": 1.0, "noise_low": 0.998, "noise_high": 1.003, "peak_mib": "", "peak_mib_against": "",
        "versions": "torch 2.14.1",
    }  # fmt: skip
    return {name: str({**usual, **values}[name]) for name in COLUMNS}


def write(path: Path, *found: dict[str, str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(found)


GPU = {"hardware": "Fast GPU", "device": "cuda", "work": "training", "dtype": "bfloat16"}


def test_rows_of_all_files_but_the_loader(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", row(batch=2))
    write(tmp_path / "a.csv", row(batch=1))
    (tmp_path / bench_tables.LOADING).write_text("images_per_second_per_core\n250\n300\n260\n")
    assert [one["batch"] for one in bench_tables.bench_rows(tmp_path)] == ["1", "2"]
    assert bench_tables.loading(tmp_path) == 260
    assert bench_tables.loading(tmp_path / "empty") is None
    assert bench_tables.bench_rows(tmp_path / "empty") == []


def test_ratios_have_a_column_for_each_mode() -> None:
    found = [row(), row(mode="compile", ratio=1.001, low=0.99, high=1.01, noise_low=0.98), row(batch=1), row(**GPU)]
    machine, _, *lines = bench_tables.ratios(found, work="inference").splitlines()
    assert machine == "Old Processor, 2 threads, float32, torch 2.14.1:"
    assert lines[0] == "| model | beside | pixels | batch | scheme | eager | compile | noise |"
    start = f"| `{TINY}` | `default` | its own |"
    assert lines[2] == f"{start} 1 | `mpvg`, folded | 1.012 (1.005 to 1.020) |  | 0.998 to 1.003 |"
    assert lines[3] == (
        f"{start} 8 | `mpvg`, folded | 1.012 (1.005 to 1.020) | 1.001 (0.990 to 1.010) | 0.980 to 1.003 |"
    )
    assert len(lines) == 4
    assert bench_tables.ratios(found, work="training").startswith("Fast GPU, bfloat16, torch 2.14.1:")
    assert bench_tables.ratios([], work="training") == bench_tables.NOTHING


def test_a_ratio_that_was_not_told_has_no_number() -> None:
    (line,) = bench_tables.ratios([row(ratio="", low="", high="")], work="inference").splitlines()[4:]
    assert "| too noisy to tell |" in line


def test_peaks_are_those_that_were_measured() -> None:
    found = [row(), row(peak_mib=12.5, peak_mib_against=10, mode="compile"), row(work="training", peak_mib=1)]
    (line,) = bench_tables.peaks(found, work="inference").splitlines()[2:]
    assert line == f"| `{TINY}` | `mpvg`, folded | compile | 8 | 12.5 | 10.0 | 1.250 |"
    assert bench_tables.peaks(found, work="training") == bench_tables.NOTHING


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_hours_come_from_the_fastest_row_of_each_machine() -> None:
    slow = row(**GPU, batch=64, milliseconds=100)
    fast = row(**GPU, batch=256, milliseconds=200)
    text = bench_tables.recipe_hours([slow, fast, row(work="training", milliseconds=800)], 100.0)
    found = [cells(line) for line in text.splitlines() if line.startswith("| DeiT-Ti")]
    assert found[0][:5] == ["DeiT-Ti", "300", "Fast GPU, bfloat16, eager", "256", "1,280.0"]
    assert found[0][5:8] == [f"{hours(1280, gpus=gpus, epochs=300):,.1f} h" for gpus in (1, 4, 8)]
    assert found[0][-1] == "12.80"
    days = 1_281_167 * 300 / 10 / 86400
    assert found[1][4:] == ["10.0", f"no GPU: {days:,.0f} days", "", "", "", "", "0.10"]
    assert len(found) == 2


def test_hours_for_a_throughput_of_ones_own() -> None:
    lines = [cells(line) for line in bench_tables.hours_by_speed(250.0).splitlines()[2:]]
    assert lines[1][:2] == ["500", f"{1_281_167 * 300 / 500 / 3600:,.1f}"]
    assert lines[1][2] == f"{1_281_167 * 300 / 500 / 3600 / 4 / 0.9:,.1f}"
    assert [line[-1] for line in lines] == ["1.0", "2.0", "4.0", "8.0", "16.0"]
    assert "not measured" in bench_tables.hours_by_speed(None)


def test_hours_are_those_of_mpvg_at_the_recipes_size() -> None:
    others = [row(**GPU, scheme="default", batch=256), row(**GPU, size="64x64", batch=512)]
    assert bench_tables.throughputs(others) == {}


@pytest.mark.parametrize("found", [[], [row(work="training")], [row(**{**GPU, "work": "inference"})]])
def test_no_gpu_has_a_number_that_nobody_measured(found: list[dict[str, str]]) -> None:
    lines = [line for line in bench_tables.recipe_hours(found, None).splitlines() if line.startswith("|")][2:]
    assert sum(bench_tables.NO_GPU in line for line in lines) == 6
    assert not any(" h |" in line for line in lines)


def test_the_chart_has_a_dot_for_each_row() -> None:
    found = [row(), row(work="training", mode="compile", ratio=0.98, low=0.97, high=0.99), row(**GPU)]
    with style(PRINT):
        svg = print_files(cost_figures.chart(found))[".svg"].decode()
    for text in ("1.012", "0.980", "deit_tiny, mpvg, folded", "eager, batch 8, CPU", "batch 8, Fast GPU"):
        assert text in svg
    assert "inference" in svg


def test_the_small_chart_has_what_was_told_of_deit_ti() -> None:
    shown = [
        row(batch=32),
        row(batch=32, variant="unfolded"),
        row(batch=32, mode="onnx"),
        row(batch=32, variant="unfolded", mode="compile", work="training"),
    ]
    hidden = [
        row(),
        row(batch=32, ratio=""),
        row(batch=32, scheme="gap"),
        row(batch=32, variant="unfolded", mode="onnx"),
    ]
    assert [cost_figures.is_shown(one) for one in shown + hidden] == [True] * 4 + [False] * 4


def test_attempts_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "deit.csv"
    assert bench_tables.attempts(path) == bench_tables.NOTHING
    path.write_text(
        "size,batch,work,attempt,ratio,low,high,difference,noise,noise_low,noise_high\n"
        'tiny,1,"inference, eager",as it is,1.01,1.00,1.02,1e-07,1.0,0.99,1.01\n'
    )
    (line,) = bench_tables.attempts(path).splitlines()[2:]
    assert line == (
        "| DeiT, tiny | 1 | inference, eager | as it is | 1.010 (1.000 to 1.020) | 0.990 to 1.010 | 1e-07 |"
    )


def test_the_law_is_drawn_through_what_is_counted() -> None:
    base = {"embed_dim": 192, "img_size": 224, "depth": 12}
    gap = cost_figures.counted("gap", **base)
    for scheme in cost_figures.STYLES:
        extra = cost_figures.counted(scheme, **base).extra(gap, 32)["flops"]
        assert cost_figures.by_law(scheme, **base, batch=32) == pytest.approx(extra, rel=0.03)


def test_loading_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "bench" / "data_loading.csv"
    monkeypatch.setattr("sys.argv", ["data_loading", "--images", "2", "--rounds", "2", "--out", str(out)])
    data_loading.main()
    assert (bench_tables.loading(out.parent) or 0) > 1
    with out.open(encoding="utf-8") as file:
        assert [line["quality"] for line in csv.DictReader(file)] == ["90", "90"]


def test_files_are_as_large_as_those_of_imagenet(tmp_path: Path) -> None:
    files = data_loading.write_images(tmp_path, 3)
    assert 100_000 < sum(file.stat().st_size for file in files) / 3 < 120_000
