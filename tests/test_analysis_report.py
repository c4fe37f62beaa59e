"""The report of an analysis: its figures, what it says, and what it leaves out."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from findings import make_ceit, make_findings, make_norms, make_swin, with_undefined
from mpvg.analysis.figures.depth import DepthChart
from mpvg.analysis.figures.grids import similarity, token_norms
from mpvg.analysis.figures.last_norm import positions_in_last_norm
from mpvg.analysis.figures.maps import evenly, shown_map, tokens_and_positions
from mpvg.analysis.figures.numbers import number
from mpvg.analysis.figures.series import grouped
from mpvg.analysis.results import (
    Findings,
)
from mpvg.analysis.statements import statements
from mpvg.report.analysis import write_analysis_report
from mpvg.report.svg import PRINT


class Page(HTMLParser):
    """Visible text, and every attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.words, self.attributes, self._style = html, "", [("", "")], False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words = " ".join(f"{self.words} {data}".split()) if data.strip() else self.words


def names(out: Path) -> set[str]:
    return {path.stem for path in (out / "figures").iterdir()}


def limits(figure: Figure) -> set[tuple[float, float]]:
    images = [image for axes in figure.axes for image in axes.images]
    return {image.get_clim() for image in images if np.asarray(image.get_array()).ndim == 2}


ALL = {
    "figure2_tokens_and_positions",
    "figure4_correlation_by_depth",
    "figure6_last_norm",
    "figure7_token_norms",
    "figure8_last_norm_position",
    "position_similarity",
    "variance_share",
    "effective_rank",
    "causal_test",
}


def bare(findings: Findings) -> Findings:
    """The same without what takes long to draw."""
    return dataclasses.replace(findings, initial=None, last=None, norms=None, causal=None)


@dataclasses.dataclass(frozen=True)
class Report:
    """A report written once for several tests."""

    findings: list[Findings]
    out: Path
    files: list[Path]

    @property
    def page(self) -> Page:
        return Page((self.out / "report.html").read_text())


def report_in(out: Path, findings: list[Findings]) -> Report:
    files = write_analysis_report(
        findings, statements(findings), out, command="mpvg", data="Digits.", versions={"mpvg": "0.1"}
    )
    return Report(findings, out, files)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_in(tmp_path_factory.mktemp("single"), [make_findings(paper={1: -0.37, 3: -0.95})])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Report:
    plain = make_findings("gap", first=None, added=False)
    return report_in(
        tmp_path_factory.mktemp("mixed"), [with_undefined(make_findings()), plain, make_swin(), make_ceit()]
    )


def test_writes_every_figure_twice_and_returns_the_files(single: Report) -> None:
    assert names(single.out) == ALL
    assert set(single.files) == {path for path in single.out.rglob("*") if path.is_file()}
    assert {path.suffix for path in single.files} == {".html", ".png", ".svg"}
    assert (single.out / "figures" / "variance_share.png").read_bytes().startswith(b"\x89PNG")


def test_page_loads_nothing_and_ids_are_unique(mixed: Report) -> None:
    page = mixed.page
    loads = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in loads)
    assert any(value.startswith("data:") for value in loads)
    assert all(one.startswith("#") for one in re.findall(r"url\(([^)]*)\)", page.html))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in loads if value.startswith("#")} <= set(ids)


def test_embedded_heat_maps_hold_the_cells_themselves(single: Report) -> None:
    svg = (single.out / "figures" / "figure2_tokens_and_positions.svg").read_text()
    encoded = re.findall(r"data:image/png;base64,([^\"]+)", svg)
    images = [Image.open(BytesIO(base64.b64decode(one))) for one in encoded]
    assert [image.size for image in images] == [(128, 1), *[(24, 20)] * 7]  # colour bar, 3 blocks twice, x_L
    assert {image.mode for image in images} == {"P"}
    expected = tokens_and_positions(single.findings).draw(PRINT).axes[1].images[0]
    pixels = np.asarray(images[1].convert("RGB"))
    assert (pixels == expected.to_rgba(np.asarray(expected.get_array()), bytes=True)[..., :3]).all()


def test_colours_follow_the_page_but_not_in_the_files(single: Report) -> None:
    html = single.page.html
    files = "".join(path.read_text() for path in single.out.glob("figures/*.svg"))
    assert "currentColor" in html
    assert "var(--series-1)" in html
    assert "#010203" not in html + files
    assert "#0a0b" not in html + files
    assert "currentColor" not in files
    assert "var(--" not in files
    white = "fill: #ffffff"  # the ground of a figure
    assert white in files
    assert white not in html


def test_same_findings_give_same_bytes(single: Report, tmp_path: Path) -> None:
    again = report_in(tmp_path, single.findings)
    assert [path.read_bytes() for path in again.files] == [path.read_bytes() for path in single.files]


def test_prints_correlations_and_labels_those_of_the_paper(single: Report, mixed: Report) -> None:
    words = single.page.words
    value = single.findings[0].blocks[3].correlation.value
    assert f"r = {number(value)}" in words
    assert number(value, 3) in words
    assert words.count("paper: −0.95") >= 2  # in the figure and in the table
    assert "paper: 0.2387" in words
    assert "paper: 0.2995" in words
    assert "paper: " not in mixed.page.words


def test_headline_gives_the_last_correlation(single: Report) -> None:
    value, low, high = single.findings[0].blocks[3].correlation
    end = f"correlate at {number(value)} (95\xa0% over images: {number(low)} to {number(high)}) in block 3"
    assert " ".join(end.split()) in single.page.words


def test_nothing_undefined_is_printed_as_python_has_it(mixed: Report) -> None:
    words = mixed.page.words + "".join(Page(path.read_text()).words for path in mixed.out.glob("figures/*.svg"))
    assert not re.search(r"\b(nan|None|inf)\b", words)
    assert "r undefined" in words


def test_several_models_state_their_reasons(mixed: Report) -> None:
    assert {"causal_test", "causal_test_answers"} <= names(mixed.out)  # ceit's images have no labels
    words = mixed.page.words
    assert "ceit: Its Last LN reads one token: no map of norms." in words
    assert "gap delivers no position to its blocks." in words
    assert "nothing is delivered: tokens only" in words
    assert "swin was not put to the causal test." in words
    assert "gap, swin and ceit add no position after the Last LN." in words


def test_undefined_values_leave_a_gap() -> None:
    chart = DepthChart(grouped([with_undefined(make_findings())]), lambda block: block.correlation, "r")
    lines = chart.draw(PRINT).axes[0].lines
    (mean,) = [line for line in lines if line.get_linewidth() == 2]
    (cross,) = [line for line in lines if line.get_marker() == "x"]
    assert np.isnan(np.asarray(mean.get_ydata(), dtype=float)).tolist() == [False, True, False]
    assert np.asarray(cross.get_xdata()).tolist() == [2]


def test_lca_stands_apart_from_the_line() -> None:
    found = make_ceit()
    axes = DepthChart(grouped([found]), lambda block: block.correlation, "r").draw(PRINT).axes[0]
    (line,) = [line for line in axes.lines if line.get_linewidth() == 2]
    assert np.asarray(line.get_xdata()).tolist() == [1, 2, 3]
    (square,) = [line for line in axes.lines if line.get_marker() == "s" and line.get_markersize() == 5]
    assert np.asarray(square.get_ydata()).tolist() == [found.blocks[4].correlation.value]
    assert "LCA" in [label.get_text() for label in axes.get_xticklabels()]


def test_seeds_of_one_model_share_a_panel_with_their_interval(tmp_path: Path) -> None:
    models = [make_findings(f"mpvg, seed {seed}", series="mpvg", seed=seed) for seed in range(3)]
    figure = DepthChart(grouped(models), lambda block: block.correlation, "r").draw(PRINT)
    assert [axes.get_title() for axes in figure.axes] == ["mpvg"]
    values = [one.blocks[3].correlation.value for one in models]
    mean = np.mean([value for value in values if value is not None])
    drawn = [np.asarray(line.get_ydata())[-1] for line in figure.axes[0].lines if line.get_linewidth() == 2]
    assert drawn == [pytest.approx(mean)]
    page = report_in(tmp_path, [bare(one) for one in models]).page
    assert "band over seeds (Student t)" in page.words
    assert "images (bootstrap)" not in page.words
    assert "over 3 seeds" in page.words


def test_figure_2_has_one_symmetric_scale() -> None:
    models = [make_findings(), make_findings("gap", first=None), make_swin()]
    ((low, high),) = limits(tokens_and_positions(models).draw(PRINT))
    assert low == -high < 0
    arrays = [block.tokens.numpy() for one in models[:1] for block in one.blocks]
    assert high < 3 * max(float(np.abs(one).max()) for one in arrays)


def test_figure_8_has_a_scale_a_column_common_to_all_models() -> None:
    models = [make_findings(), make_findings("pvg", added=False, seed=2)]
    figure = positions_in_last_norm(models)
    assert figure is not None
    assert len(limits(figure.draw(PRINT))) == len({scale.high for scale in figure.scales}) == 3
    assert all(low == -high for low, high in limits(figure.draw(PRINT)))
    assert positions_in_last_norm(models[1:]) is None


def test_figure_2_shows_the_first_and_last_receiving_block_at_most_six() -> None:
    deep = make_findings(depth=24, grid=(3, 3), width=8)
    (band,) = tokens_and_positions([deep]).bands
    titles = [tile.title.split("\n")[0] for tile in band.rows[0] if tile is not None]
    assert titles[0] == "block 1"
    assert titles[-2:] == ["block 23", "after the"]
    assert len(titles) == 7
    assert [evenly(3, 6), evenly(24, 2)] == [[0, 1, 2], [0, 23]]


def test_large_maps_are_averaged_over_neighbours_and_keep_their_mean() -> None:
    values = torch.arange(56 * 56, dtype=torch.float64)[:, None].repeat(1, 96)
    shown = shown_map(values, (56, 56))
    assert shown.shape == (196, 96)
    assert shown.mean() == pytest.approx(values.mean())
    assert shown[0, 0] == pytest.approx(values.reshape(56, 56, 96)[:4, :4, 0].mean())
    assert shown_map(torch.zeros(196, 768), (14, 14)).shape == (196, 256)


def test_more_than_three_models_get_a_figure_of_norms_each_on_the_same_scales() -> None:
    models = [make_findings(f"m{at}", seed=at) for at in range(4)]
    figures = [one.draw(PRINT) for one in token_norms(models)]
    assert len(figures) == 4
    assert len({frozenset(limits(figure)) for figure in figures}) == 1
    assert len(token_norms(models[:3])) == 1


def test_an_image_common_to_all_models_is_drawn_once() -> None:
    models = [make_findings("a"), make_findings("b", seed=1)]
    (shared,) = token_norms(models)
    norms = make_norms((4, 5))
    other = dataclasses.replace(models[1], norms=dataclasses.replace(norms, images=norms.images[:, ::2]))
    (apart,) = token_norms([models[0], other])
    first = [[tile.title for tile in one.bands[0].rows[0] if tile is not None] for one in (shared, apart)]
    assert first[0] == ["image", "a\nbefore", "a\nafter", "b\nbefore", "b\nafter"]
    assert first[1] == ["a\nimage", "a\nbefore", "a\nafter", "b\nimage", "b\nbefore", "b\nafter"]


def test_similarity_of_the_centre_and_what_is_undefined() -> None:
    found = similarity([with_undefined(make_findings()), make_swin(), make_ceit()])
    assert found is not None
    figure = found.draw(PRINT)
    assert limits(figure) == {(-1.0, 1.0)}
    words = " ".join(text.get_text() for text in (*figure.texts, *(text for a in figure.axes for text in a.texts)))
    assert "undefined" in words
    assert "12 × 12, stage 2" in words
    assert "LCA" in words
    grid = np.asarray(figure.axes[1].images[0].get_array())
    assert grid.shape == (4, 5)
    assert grid[2, 2] == pytest.approx(1)


def test_says_why_figures_are_missing(tmp_path: Path) -> None:
    page = report_in(tmp_path, [bare(make_findings("gap", first=None))]).page
    assert names(tmp_path) == {"figure2_tokens_and_positions"}
    assert page.words.count("gap delivers no position to its blocks.") == 2
    assert "gap has no Last LN." in page.words
    assert "gap has no map of token norms" in page.words
    assert "gap delivers nothing that could be replaced." in page.words
    assert "no position is delivered to the blocks" in page.words


def test_user_text_is_escaped(tmp_path: Path) -> None:
    found = bare(make_findings("<b>x</b> & $y$", first=None))
    write_analysis_report([found], [], tmp_path, command="mpvg <script>", data="<i>Images</i>.", versions={"<u>": "1"})
    page = Page((tmp_path / "report.html").read_text())
    assert not {"<b>", "<script>", "<i>", "<u>"} & set(re.findall(r"<\w+>", page.html))
    assert page.words.count("<b>x</b> & $y$") >= 4
    assert "mpvg <script>" in page.words
