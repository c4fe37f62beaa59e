"""The report of `mpvg analyze`: one HTML file that needs nothing else, and each figure as PNG and SVG."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure

from mpvg.analysis.figures.causal import causal_charts
from mpvg.analysis.figures.depth import DepthChart
from mpvg.analysis.figures.grids import similarity, token_norms
from mpvg.analysis.figures.last_norm import last_norm, positions_in_last_norm
from mpvg.analysis.figures.maps import tokens_and_positions
from mpvg.analysis.figures.series import Series, grouped
from mpvg.analysis.results import Findings
from mpvg.analysis.statements import Statement
from mpvg.files import write_atomically
from mpvg.report import analysis_tables as tables
from mpvg.report.analysis_missing import about, missing_causal, missing_last, missing_norms, notes
from mpvg.report.page import template
from mpvg.report.svg import PAGE, PRINT, SERIES_COUNT, Drawing, Palette, inline_svg, print_files, style
from mpvg.report.wording import NBSP, listed

__all__ = ["write_analysis_report"]

_SIZE = 9.0  # of text in a figure as wide as the page


class _Figure(Protocol):
    def draw(self, palette: Palette) -> Figure: ...


@dataclass(frozen=True)
class _Plot:
    """A figure, the name of its files, and its words in the report."""

    name: str
    title: str
    text: str
    figure: _Figure

    def files(self) -> dict[str, bytes]:
        """Render the figure for print."""
        with style(PRINT, size=_SIZE):
            return print_files(self.figure.draw(PRINT))

    def drawing(self, models: str) -> Drawing:
        """Render the figure for the page."""
        with style(PAGE, size=_SIZE):
            svg = inline_svg(self.figure.draw(PAGE), prefix=self.name, label=f"{self.title}: {models}.")
        return Drawing(self.title, self.text, svg, wide=True)


@dataclass(frozen=True)
class _Section:
    """Figures on one matter, and sentences on what they leave out."""

    title: str
    plots: Sequence[_Plot]
    missing: Sequence[str]


def write_analysis_report(
    findings: Sequence[Findings],
    tested: Sequence[Statement],
    out: Path,
    *,
    command: str,
    data: str,
    versions: Mapping[str, str],
) -> list[Path]:
    """Write the report of an analysis, and its figures as files.

    Args:
        findings: What was found about each model, at least one.
        tested: The paper's statements about them.
        out: The folder; it must exist. Files already there are replaced, each in one step.
        command: What reproduces the report.
        data: A sentence on the images or sequences.
        versions: Of the programs, by name.

    Returns:
        The files: report.html, then figures/NAME.png and figures/NAME.svg.

    Raises:
        OSError: A file cannot be written.
    """
    models = listed([one.label for one in findings])
    sections = [*_sections(findings)]
    text = template("analysis.html.j2").render(
        findings=findings,
        headline=tables.headline(findings),
        bands=tables.bands(findings),
        sections=[
            {"title": one.title, "drawings": [plot.drawing(models) for plot in one.plots], "missing": one.missing}
            for one in sections
        ],
        model_rows=tables.model_rows(findings),
        statement_rows=tables.statement_rows(tested),
        last_norm_rows=tables.last_norm_rows(findings),
        last_norm_measures=[heading for heading, _, _ in tables.LAST_NORM_MEASURES],
        block_rows=tables.block_rows,
        causal_rows=tables.causal_rows,
        notes=list(notes(findings)),
        command=command,
        data=data,
        versions=versions,
        series_count=SERIES_COUNT,
        unit=findings[0].unit,
        sample=findings[0].one,
    )
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    paths = []
    for plot in (plot for one in sections for plot in one.plots):
        for suffix, content in plot.files().items():
            paths.append(folder / f"{plot.name}{suffix}")
            write_atomically(paths[-1], content)
    write_atomically(out / "report.html", text)
    return [out / "report.html", *paths]


def _sections(findings: Sequence[Findings]) -> Iterator[_Section]:
    """Return all sections; of several seeds, maps show the first."""
    series = grouped(findings)
    silent = [one.label for one in findings if not one.delivers]
    nothing = about(silent, "delivers no position to its blocks", "deliver no position to their blocks")
    delivering = [one for one in series if one.members[0].delivers]
    mapped = [one.members[0] for one in series]
    yield _Section("Tokens and positions", [_figure2(mapped), *_depth(series, delivering, "correlation")], nothing)
    yield _Section("The Last LN", [*_last_norm(mapped)], [*missing_last(findings)])
    if findings[0].unit == "images":  # they are drawn over pictures
        yield _Section("Token norms", [*_norms(mapped)], [*missing_norms(findings)])
    yield _Section(
        "Delivered positions",
        [*_similarity(mapped), *_depth(series, delivering, "share"), *_depth(series, delivering, "rank")],
        nothing,
    )
    yield _Section("Causal test", [*_causal(findings)], [*missing_causal(findings)])


def _figure2(findings: Sequence[Findings]) -> _Plot:
    figure = tokens_and_positions(findings)
    limit = figure.scales[0].high
    text = (
        f"Above, the normalised tokens that enter a block's attention (mean over the {findings[0].unit}); below, the "
        "position delivered to it. A row is a token, a column a dimension. Where the position is red and the tokens "
        "are blue, or the other way round, the two counterbalance; r is their correlation. All panels share one scale, "
        f"which ends at ±{limit:g}: 99.5{NBSP}% of the entries of the block panels lie within, and x_L after the last "
        f"block may exceed it (the paper's figure ends at ±20). {_reduced(findings)}"
    )
    return _Plot("figure2_tokens_and_positions", "Tokens and positions (figure 2)", text.strip(), figure)


def _reduced(findings: Sequence[Findings]) -> str:
    shapes = [block.tokens.shape for one in findings for block in one.blocks]
    parts = []
    if any(rows > 256 for rows, _ in shapes):
        square = "square neighbourhoods" if findings[0].unit == "images" else "neighbours"
        parts.append(f"maps of more than 256 tokens are averaged over {square}")
    if any(columns > 256 for _, columns in shapes):
        parts.append("of more than 256 dimensions evenly chosen ones are drawn")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}; the numbers come from the full maps." if text else ""


def _depth(series: Sequence[Series], delivering: Sequence[Series], which: str) -> Iterator[_Plot]:
    if not delivering:
        return
    unit, sample = delivering[0].members[0].unit, delivering[0].members[0].one
    band = (
        f"The shaded band is the 95{NBSP}% Student-t interval over seeds; thin lines are seeds, the thick line is "
        "their mean."
        if any(len(one.members) > 1 for one in delivering)
        else ""
    )
    single = (
        f"The shaded band of a single model is its 95{NBSP}% bootstrap band over {unit}."
        if which != "rank" and any(len(one.members) == 1 for one in delivering)
        else ""
    )
    bands = " ".join(part for part in (band, single) if part)
    if which == "correlation":
        printed = any(block.paper is not None for one in delivering for block in one.members[0].blocks)
        rings = " Open rings are the paper's values." if printed else ""
        text = (
            f"The correlation r of tokens and delivered position, block by block. {bands} Diamonds correlate each "
            f"{sample} by itself and average then.{rings} At −1 tokens and position cancel out but for scale; at zero "
            "they are not linearly related."
        )
        chart = DepthChart(
            series,
            lambda block: block.correlation,
            "correlation",
            centred=True,
            second=lambda block: block.correlation_per_image,
            second_name=f"per {sample}, then averaged",
            paper=True,
        )
        yield _Plot("figure4_correlation_by_depth", "Correlation by depth (figure 4)", text, chart)
    elif which == "share":
        text = (
            "The part of the variance of the attention's input (tokens plus position) that the position carries. "
            f"{bands} It is negative where the tokens' counterbalance outweighs the position."
        )
        chart = DepthChart(series, lambda block: block.variance_share, "share of variance")
        yield _Plot("variance_share", "Share of variance by depth", text, chart)
    else:
        text = (
            "How many directions a delivered position spans, weighted by how much it uses them; at least 1, at most "
            f"the number of tokens or dimensions. {bands}"
        )
        chart = DepthChart(series, lambda block: block.effective_rank, "effective rank")
        yield _Plot("effective_rank", "Effective rank by depth", text.strip(), chart)


def _last_norm(findings: Sequence[Findings]) -> Iterator[_Plot]:
    unit, added = findings[0].unit, positions_in_last_norm(findings)
    if added is not None:
        text = (
            f"Tokens before and after the Last LN (mean over the {unit}), and the position that is added after it. "
            "Each column has one scale for all models. Correlations are of the maps, flattened."
        )
        yield _Plot("figure8_last_norm_position", "The position at the Last LN (figure 8)", text, added)
    figure = last_norm(findings)
    if figure is not None:
        constant = (
            "the constant c: the mean of the added position over the tokens, all that average pooling keeps of it"
        )
        if unit != "images":
            constant = f"c: what average pooling keeps of the added position, by the length, averaged over the {unit}"
        text = (
            f"Maps before and after the Last LN, its weight γ and bias β by dimension, and {constant}. γ and β have "
            "the same axes in all models. The cosine is of what is read out: the mean over the tokens, or the class "
            "token, which the maps leave out. Between PVG and MPVG compare var(β + c), not var(β), as the table above "
            "says."
        )
        yield _Plot("figure6_last_norm", "What the Last LN does (figure 6)", text, figure)


def _norms(findings: Sequence[Findings]) -> Iterator[_Plot]:
    figures = token_norms(findings)
    for at, figure in enumerate(figures, 1):
        text = (
            "The L2 norm of each token of an image before the Last LN, and after it with the position that is added "
            "there. Models of one width share one scale before and one after."
        )
        name = "figure7_token_norms" + (f"_{at}" if len(figures) > 1 else "")
        title = "Token norms (figure 7)" + (f": {figure.bands[0].title}" if len(figures) > 1 else "")
        yield _Plot(name, title, text, figure)


def _similarity(findings: Sequence[Findings]) -> Iterator[_Plot]:
    figure = similarity(findings)
    if figure is not None and findings[0].unit != "images":
        text = (
            "The cosine similarity of each position with every other one, the first token at the top left: red where "
            "positions are alike, blue where they are opposite. Only tokens that at least half of the "
            f"{findings[0].unit} have are drawn."
        )
        yield _Plot("position_similarity", "How alike positions are", text, figure)
    elif figure is not None:
        text = (
            "The cosine similarity of the position in the grid's centre with every other one, drawn at its place on "
            "the image: red where positions are alike, blue where they are opposite. Maps of all grids are drawn at "
            "one size."
        )
        yield _Plot("position_similarity", "How alike positions are", text, figure)


def _causal(findings: Sequence[Findings]) -> Iterator[_Plot]:
    known, unknown = causal_charts(findings)
    unit = findings[0].unit
    start = "What happens when a block receives no position, pos_0, or the position of another block"
    bars = f"Bars are 95{NBSP}% intervals: over {unit} (paired), or with several seeds over seeds (Student t)"
    if known is not None:
        text = (
            f"{start}: the change of accuracy on the same {unit}. {bars}; where a bar crosses zero, no change is shown."
        )
        yield _Plot("causal_test", "Accuracy without a block's position", text, known)
    if unknown is not None:
        text = (
            f"{start}: the part of the {unit} whose most probable class stays the same. Accuracy is unknown here, as "
            f"the {unit} have no labels that the model knows."
        )
        yield _Plot("causal_test_answers", "Answers without a block's position", text, unknown)
