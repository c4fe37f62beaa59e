"""Findings as numbers in files: analysis.json, and measures.csv and statements.csv with a row for each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor

from mpvg.analysis.results import BlockFindings, Estimate, Findings, LastNormFindings
from mpvg.analysis.statements import Statement

BLOCK_MEASURES = ("correlation", "correlation_per_image", "variance_share", "effective_rank")


class Row(NamedTuple):
    """One measure of one model; `block` is empty for a measure of the whole model, a value that is undefined too."""

    label: str
    model: str
    scheme: str
    checkpoint: str
    block: str
    measure: str
    value: float | None
    low: float | None
    high: float | None
    paper: float | None


def measures_csv(findings: Sequence[Findings]) -> str:
    """Return all measures as CSV text with a header."""
    return _csv([Row._fields, *(row for found in findings for row in _rows(found))])


def statements_csv(found: Sequence[Statement]) -> str:
    """Return the tested statements as CSV text with a header."""
    header = ("claim", "where", "measure", "expected", "mean", "low", "high", "seeds", "verdict")
    rows = [(one.claim, one.where, one.measure, one.expected, *one.estimate, one.seeds, one.verdict) for one in found]
    return _csv([header, *rows])


def as_json(found: Findings) -> dict[str, Any]:
    """Return what was found about one model as JSON values; maps are left out, vectors at the Last LN are not."""
    return {
        "name": found.name,
        "label": found.label,
        "model": found.model,
        "scheme": found.scheme,
        "folded": found.folded,
        "parameters": found.parameters,
        "images": found.images,
        "unit": found.unit,
        "seed": found.seed,
        "accuracy": found.accuracy,
        "blocks": [_block_json(block) for block in found.blocks],
        "last_norm": None if found.last is None else _last_json(found.last),
        "causal": None if found.causal is None else _causal_json(found),
        "notes": list(found.notes),
    }


def _rows(found: Findings) -> Iterator[Row]:
    def row(block: str, measure: str, estimate: Estimate, paper: float | None = None) -> Row:
        return Row(found.label, found.model, found.scheme, found.name, block, measure, *estimate, paper)

    for block in found.blocks:
        for measure in BLOCK_MEASURES if block.position is not None else ():
            paper = block.paper if measure == "correlation" else None
            yield row(block.name, measure, getattr(block, measure), paper)
    if found.last is not None:
        for measure, value in asdict(found.last.statistics).items():
            yield row("", measure, Estimate(value), found.last.paper.get(measure))
    if found.accuracy is not None:
        yield row("", "accuracy", Estimate(found.accuracy))
    if found.causal is not None:
        for one in found.causal.interventions:
            if one.accuracy is not None:
                yield row(one.name, f"accuracy_change, {one.change}", one.difference)
            yield row(one.name, f"same_answers, {one.change}", Estimate(one.same_answers))


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()


def _block_json(block: BlockFindings) -> dict[str, Any]:
    delivered = block.position is not None
    return {
        "block": block.block,
        "name": block.name,
        "grid": block.grid,
        "rows": len(block.tokens),
        "receives": delivered,
        **({measure: getattr(block, measure)._asdict() for measure in BLOCK_MEASURES} if delivered else {}),
        "paper_correlation": block.paper,
    }


def _last_json(last: LastNormFindings) -> dict[str, Any]:
    return {
        **asdict(last.statistics),
        "gamma": _listed(last.gamma),
        "beta": _listed(last.beta),
        "constant": _listed(last.constant),
        "paper": last.paper,
    }


def _causal_json(found: Findings) -> dict[str, Any]:
    assert found.causal is not None
    tried = [{**asdict(one), "difference": one.difference._asdict()} for one in found.causal.interventions]
    return {"images": found.causal.images, "accuracy": found.causal.accuracy, "interventions": tried}


def _listed(vector: Tensor | None) -> list[float] | None:
    return None if vector is None else vector.tolist()
