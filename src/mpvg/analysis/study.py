"""One model's analysis: the recording, the measures, the token norms and the causal test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpvg.analysis.interventions import causal_test, changes
from mpvg.analysis.map_statistics import MapStatistics
from mpvg.analysis.measures import effective_rank, last_norm_statistics
from mpvg.analysis.pictures import Pictures
from mpvg.analysis.printed import printed_at_last_norm, printed_correlations
from mpvg.analysis.record import Place, Recorder, patch_rows
from mpvg.analysis.results import BlockFindings, CausalTest, Estimate, Findings, LastNormFindings, TokenNorms
from mpvg.analysis.subjects import Subject
from mpvg.data.images import resizing_in_words
from mpvg.data.preprocessing import eval_batch_size

Grid = tuple[int, int] | None


def passes(subject: Subject, pictures: Pictures, *, causal_images: int) -> int:
    """Return how many batches `study` runs a model on, to show how far it has come."""
    size = eval_batch_size(subject.preprocessing.size)
    recorded = -(-pictures.count // size)
    tried = len(changes(subject.model)) + 1 if causal_images and subject.scheme else 0
    return recorded + tried * -(-min(causal_images, pictures.count) // size)


def study(
    subject: Subject,
    pictures: Pictures,
    *,
    shown: Sequence[int] = (),
    causal_images: int = 0,
    device: str = "cpu",
    report: Callable[[], None] = lambda: None,
) -> Findings:
    """Return everything found about one model.

    Args:
        subject: The model.
        pictures: The images.
        shown: Numbers of the images whose token norms are kept.
        causal_images: How many of them the causal test takes; 0 leaves it out.
        device: Where to compute.
        report: Called after each batch.

    Returns:
        Its findings, on the CPU.

    Raises:
        NonFiniteActivationsError: The model computes NaN or infinite numbers; the error names the block.
    """
    model, preprocessing = subject.model.to(device), subject.preprocessing
    size = eval_batch_size(preprocessing.size)
    knows = subject.card is not None and subject.card.classes == pictures.classes
    right = 0
    with Recorder(model, shown=shown) as recorder:
        for batch, labels in pictures.batches(preprocessing, size=size, device=device):
            answers = recorder.run(batch).argmax(dim=1).cpu()
            if knows and labels is not None:
                right += int((answers == labels).sum())
            report()
    notes = [subject.note] if subject.note else []
    if pictures.size not in (None, preprocessing.size):
        notes.append(f"For {subject.label}, {resizing_in_words([pictures.size], preprocessing.size)}.")
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
    norms = _norms(recorder, last.grid, pictures, subject) if last is not None and last.grid and shown else None
    if last is not None and last.grid is None:
        notes.append(f"The Last LN of {subject.label} reads a single token, so there are no norms over the image.")
    initial, initial_grid = _initial(model, recorder, grid)
    causal = _causal(subject, pictures, causal_images, knows, device, report)
    if causal is not None and not knows:
        notes.append(
            f"{subject.label} was not trained on the classes of these images, so the causal test counts unchanged "
            "answers and no accuracy."
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
    )


def _block(place: Place, seen: MapStatistics, *, grid: Grid, paper: float | None) -> BlockFindings:
    return BlockFindings(
        block=place.block,
        name=place.name,
        grid=grid,
        tokens=seen.mean.cpu(),
        position=None if place.position is None else place.position.cpu(),
        correlation=seen.correlation(),
        correlation_per_image=seen.correlation_per_image(),
        variance_share=seen.variance_share(),
        effective_rank=Estimate(None if place.position is None else effective_rank(place.position)),
        paper=paper,
    )


def _last(subject: Subject, recorder: Recorder, grid: Grid) -> LastNormFindings | None:
    if not recorder.after.images:
        return None
    model, before, after = subject.model, recorder.before.mean, recorder.after.mean
    position, constant, readout = recorder.last, None, None
    if recorder.prefix_after.images and getattr(model, "global_pool", "") == "token":
        readout = (recorder.prefix_before.mean[0], recorder.prefix_after.mean[0])
    if position is not None:
        assert recorder.positions is not None
        constant = position.mean(dim=0) if readout is None else torch.zeros_like(position[0])
        if readout is not None and model.has_class_row:
            constant = recorder.positions.last[0, 0].detach().double()  # type: ignore[index]
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


def _norms(recorder: Recorder, grid: tuple[int, int], pictures: Pictures, subject: Subject) -> TokenNorms:
    before, after = (np.stack([norms[part].reshape(grid).numpy() for norms in recorder.norms]) for part in (0, 1))
    return TokenNorms(
        images=np.stack([pictures.pixels(image, subject.preprocessing) for image in recorder.shown]),
        names=tuple(pictures.name(image) for image in recorder.shown),
        before=before,
        after=after,
    )


def _initial(model: Any, recorder: Recorder, grid: Grid) -> tuple[Tensor | None, Grid]:
    table = getattr(model, "pos_embed", None) if recorder.positions is None else recorder.positions.initial
    if table is None:
        return None, None
    if recorder.positions is not None:
        return _stored(patch_rows(table, int(model.has_class_row))), (
            (table.shape[1], table.shape[2]) if table.dim() == 4 else grid
        )
    patches = 0 if grid is None else grid[0] * grid[1]
    return _stored(patch_rows(table, table.shape[1] - patches)), grid


def _causal(
    subject: Subject,
    pictures: Pictures,
    images: int,
    knows: bool,
    device: str,
    report: Callable[[], None],
) -> CausalTest | None:
    if not images or not subject.scheme or not changes(subject.model):
        return None
    size = eval_batch_size(subject.preprocessing.size)
    batches = pictures.batches(subject.preprocessing, size=size, count=images, device=device)
    return causal_test(subject.model, ((batch, labels if knows else None) for batch, labels in batches), report=report)


def _stored(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach().double().cpu()
