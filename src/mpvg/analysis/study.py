"""One model's analysis: the recording, the measures, the token norms and the causal test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mpvg.analysis.interventions import causal_test, changes
from mpvg.analysis.map_statistics import Statistics
from mpvg.analysis.measures import effective_rank, last_norm_statistics
from mpvg.analysis.pictures import Pictures
from mpvg.analysis.printed import printed_at_last_norm, printed_correlations
from mpvg.analysis.record import Place, Recorder, patch_rows
from mpvg.analysis.results import (
    BlockFindings,
    CausalTest,
    Estimate,
    Findings,
    LastNormFindings,
    TokenNorms,
)
from mpvg.analysis.samples import Samples
from mpvg.analysis.subjects import Subject
from mpvg.data.splits import singular

Grid = tuple[int, int] | None


def passes(subject: Subject, samples: Samples, *, causal_images: int) -> int:
    """Return how many batches `study` runs a model on, to show how far it has come."""
    tried = len(changes(subject.model)) + 1 if causal_images and subject.scheme else 0
    again = tried * samples.batch_count(subject.preprocessing, count=causal_images) if tried else 0
    return samples.batch_count(subject.preprocessing) + again


def study(
    subject: Subject,
    samples: Samples,
    *,
    shown: Sequence[int] = (),
    causal_images: int = 0,
    device: str = "cpu",
    report: Callable[[], None] = lambda: None,
) -> Findings:
    """Return everything found about one model.

    Args:
        subject: The model.
        samples: The images or sequences.
        shown: Numbers of the images whose token norms are kept; none of sequences.
        causal_images: How many of them the causal test takes; 0 leaves it out.
        device: Where to compute.
        report: Called after each batch.

    Returns:
        Its findings, on the CPU.

    Raises:
        NonFiniteActivationsError: The model computes NaN or infinite numbers; the error names the block.
    """
    model, preprocessing = subject.model.to(device), subject.preprocessing
    knows = subject.card is not None and subject.card.classes == samples.classes
    right = 0
    with Recorder(model, shown=shown) as recorder:
        for inputs, labels in samples.batches(preprocessing, device=device):
            answers = recorder.run(*inputs).argmax(dim=1).cpu()
            if knows and labels is not None:
                right += int((answers == labels).sum())
            report()
    notes = [subject.note] if subject.note else []
    notes += samples.remarks(subject.label, preprocessing)
    notes += _rows_in_words(recorder, samples.unit)
    grid: Grid = getattr(model.patch_embed, "grid_size", None)
    printed = printed_correlations(subject.model_name, model)
    blocks = tuple(
        _block(place, seen, grid=seen.grid or (None if place.name == "LCA" else grid), paper=printed.get(place.block))
        for place, seen in zip(recorder.places, recorder.blocks, strict=True)
    )
    if not any(block.position is not None for block in blocks):
        notes.append(f"{subject.label} delivers no position to its blocks, so there is none to set against its tokens.")
    last = _last(subject, recorder, grid)
    if last is None:
        notes.append(f"{subject.label} has no norm between its last block and pooling, so there is no Last LN to draw.")
    norms = None
    if last is not None and last.grid and shown and isinstance(samples, Pictures):
        norms = _norms(recorder, last.grid, samples, subject.preprocessing)
    if last is not None and last.grid is None:
        notes.append(f"The Last LN of {subject.label} reads a single token, so there are no norms over the image.")
    initial, initial_grid = _initial(model, recorder, grid)
    causal = _causal(subject, samples, causal_images, knows, device, report)
    if causal is not None and not knows:
        notes.append(
            f"{subject.label} was not trained on the classes of these {samples.unit}, so the causal test counts "
            "unchanged answers and no accuracy."
        )
    return Findings(
        name=subject.name,
        label=subject.label,
        series=subject.series,
        model=subject.model_name,
        scheme=subject.scheme,
        folded=subject.folded,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        images=recorder.images,
        initial=initial,
        initial_grid=initial_grid,
        blocks=blocks,
        last=last,
        norms=norms,
        causal=causal,
        notes=tuple(notes),
        seed=subject.seed,
        accuracy=right / recorder.images if knows else None,
        unit=samples.unit,
    )


def _block(place: Place, seen: Statistics, *, grid: Grid, paper: float | None) -> BlockFindings:
    return BlockFindings(
        block=place.block,
        name=place.name,
        grid=grid,
        tokens=seen.mean.cpu(),
        position=_stored(seen.position),
        correlation=seen.correlation(),
        correlation_per_image=seen.correlation_per_image(),
        variance_share=seen.variance_share(),
        effective_rank=Estimate(None if seen.position is None else effective_rank(seen.position)),
        paper=paper,
    )


def _last(subject: Subject, recorder: Recorder, grid: Grid) -> LastNormFindings | None:
    if not recorder.after.images:
        return None
    model, before, after = subject.model, recorder.before.mean, recorder.after.mean
    position, read = None if recorder.last is None else recorder.reached(recorder.last), recorder.read_out()
    constant = read[2] if read is not None else None if position is None else position.mean(dim=0)
    readout = None if read is None else read[:2]
    gamma, beta = (getattr(model.norm, name, None) for name in ("weight", "bias"))
    statistics = last_norm_statistics(before, after, beta=beta, position=position, readout=readout, constant=constant)
    return LastNormFindings(
        grid=recorder.before.grid or (grid if len(before) > 1 else None),
        before=before.cpu(),
        after=after.cpu(),
        position=_stored(position),
        gamma=_stored(gamma),
        beta=_stored(beta),
        constant=_stored(constant),
        statistics=statistics,
        paper=printed_at_last_norm(subject.model_name, subject.scheme, model),
    )


def _norms(recorder: Recorder, grid: tuple[int, int], pictures: Pictures, preprocessing: Any) -> TokenNorms:
    before, after = (np.stack([norms[part].reshape(grid).numpy() for norms in recorder.norms]) for part in (0, 1))
    return TokenNorms(
        images=np.stack([pictures.pixels(image, preprocessing) for image in recorder.shown]),
        names=tuple(pictures.name(image) for image in recorder.shown),
        before=before,
        after=after,
    )


def _initial(model: Any, recorder: Recorder, grid: Grid) -> tuple[Tensor | None, Grid]:
    table = getattr(model, "pos_embed", None) if recorder.positions is None else recorder.positions.initial
    if table is None:
        return None, None
    if recorder.positions is not None:
        rows = patch_rows(table, int(model.has_class_row))
        assert rows is not None
        rows = recorder.reached(rows)
        if recorder.reach is not None:
            grid = recorder.before.grid
        return _stored(rows), (table.shape[1], table.shape[2]) if table.dim() == 4 else grid
    patches = 0 if grid is None else grid[0] * grid[1]
    return _stored(patch_rows(table, table.shape[1] - patches)), grid


def _causal(
    subject: Subject,
    samples: Samples,
    images: int,
    knows: bool,
    device: str,
    report: Callable[[], None],
) -> CausalTest | None:
    if not images or not subject.scheme or not changes(subject.model):
        return None
    batches = samples.batches(subject.preprocessing, count=images, device=device)
    return causal_test(
        subject.model, ((inputs, labels if knows else None) for inputs, labels in batches), report=report
    )


def _rows_in_words(recorder: Recorder, unit: str) -> list[str]:
    """Say which rows of the maps are used where sequences do not reach all of them."""
    reach = recorder.reach
    if reach is None or bool((reach.counts == reach.sequences).all()):
        return []
    used, most = int(reach.used.sum()), int((reach.counts > 0).nonzero().max()) + 1
    return [
        f"Maps have {used:,} rows, those that at least half of the {unit} reach; the longest {singular(unit)} reaches "
        f"{most:,}, and the position table has {reach.rows:,}. A row is the mean over the {unit} that are real there. "
        f"What is read out, and c, is the mean over each one's own tokens, averaged over the {unit}. All of this is an "
        "assumption: the paper has images of one size."
    ]


def _stored(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach().double().cpu()
