"""`mpvg analyze` as a function: models and images or sequences in, a report, figures and tables out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from mpvg.analysis.pictures import load_pictures
from mpvg.analysis.record import NonFiniteActivationsError
from mpvg.analysis.results import Findings
from mpvg.analysis.samples import Samples, spread
from mpvg.analysis.statements import statements
from mpvg.analysis.study import passes, study
from mpvg.analysis.subjects import Subject, load_subjects
from mpvg.analysis.tables import as_json, measures_csv, statements_csv
from mpvg.checkpoint import CLASSIFICATION
from mpvg.commands.options import need
from mpvg.compare.summary import versions
from mpvg.console import progress_bar, say
from mpvg.errors import UserError
from mpvg.files import write_atomically
from mpvg.out import OutFolder, locked
from mpvg.report.analysis import write_analysis_report
from mpvg.report.analysis_missing import common_notes

_CAUSAL_IMAGES = 256
_SHOWN = 4  # images whose token norms are drawn
_RESULTS = ("report.html", "analysis.json", "measures.csv", "statements.csv", "figures/*")


def analyze(
    models: Sequence[str],
    *,
    out: Path,
    data: str | Sequence[str] | None = None,
    images: int = 512,
    causal_images: int | None = None,
    show: Sequence[int] | None = None,
    scheme: str = "mpvg",
    img_size: int | None = None,
    pretrained: bool = False,
    folded: bool = False,
    skip_bad_images: bool = False,
    impute: bool = False,
    device: str = "cpu",
    command: str = "",
    console: Console | None = None,
) -> dict[str, Any]:
    """Analyse models side by side, and write what was found.

    Args:
        models: Checkpoints, folders of them, or names; see `load_subjects`.
        out: Folder for report.html, figures, analysis.json and measures.csv.
        data: Source of images or sequences, as `mpvg compare` takes it; by default the first checkpoint's own, or the
            digits where there is none.
        images: How many images or sequences, spread evenly.
        causal_images: How many of these the causal test takes; 0 leaves it out, None means up to 256.
        show: Numbers, among the images analysed, of those whose token norms are drawn; None for four of them. Sequences
            have none.
        scheme: Of registered models that are named without one.
        img_size: Side of the images in pixels, for models that are created.
        pretrained: Load timm's weights into models that are created.
        folded: Fold each layer-wise model first.
        skip_bad_images: Leave out images that cannot be read.
        impute: Fill in missing values of series, also where the checkpoint's own had none.
        device: Where to compute.
        command: What the report names as the command that reproduces it.
        console: Where to tell what is done; None for standard output.

    Returns:
        What analysis.json holds.

    Raises:
        UserError: Bad input.
        NonFiniteActivationsError: A model computes NaN or infinite numbers; the error names model and block.
    """
    console = console or Console()
    subjects = load_subjects(models, scheme=scheme, img_size=img_size, pretrained=pretrained, folded=folded)
    of_data = _data_of(subjects)
    source = _sources(of_data["source"] if data is None else data)
    if data is not None and subjects[0].task == CLASSIFICATION:
        of_data = {}  # what another set is resized to is for its own models
    options = {"--img-size": img_size, "--pretrained": pretrained, "--skip-bad-images": skip_bad_images, "--show": show}
    of_data = {**of_data, "impute": impute or bool(of_data.get("impute"))}
    samples = _samples(subjects, source, of_data, count=images, of_images=options)
    shown = sorted(set(show)) if show is not None else spread(samples.count, _SHOWN) if samples.unit == "images" else []
    if any(image >= samples.count for image in shown):
        raise UserError(f"--show {max(shown)}: {samples.count} images are analysed, numbered from 0.")
    causal_images = _CAUSAL_IMAGES if causal_images is None else causal_images
    configuration = {"analysis": list(models), "command": command, "data": source[0] if len(source) == 1 else source}
    folder = OutFolder(out, configuration, results=_RESULTS)
    with locked(out):
        folder.refuse_another_command()
        say(console, f"{len(subjects)} {'model' if len(subjects) == 1 else 'models'}. {samples.note}")
        findings: list[Findings] = []
        failed: list[NonFiniteActivationsError] = []
        with progress_bar(console, "batches") as bar:
            for subject in subjects:
                task = bar.add_task(subject.label, total=passes(subject, samples, causal_images=causal_images))
                step = partial(bar.advance, task)
                try:
                    found = study(
                        subject, samples, shown=shown, causal_images=causal_images, device=device, report=step
                    )
                    findings.append(found)
                except NonFiniteActivationsError as error:
                    failed.append(NonFiniteActivationsError(f"{subject.name}: {error}"))
        if not findings:
            raise failed[0]
        tested = statements(findings)
        result = {
            "command": command,
            "data": samples.note,
            "versions": versions(),
            "models": [as_json(found) for found in findings],
            "statements": [statement.as_json() for statement in tested],
        }
        folder.replace_all()  # only now, so that an analysis that fails leaves an earlier one as it was
        write_atomically(out / "analysis.json", json.dumps(result, indent=1, allow_nan=False))
        write_atomically(out / "measures.csv", measures_csv(findings))
        write_atomically(out / "statements.csv", statements_csv(tested))
        write_analysis_report(findings, tested, out, command=command, data=samples.note, versions=versions())
    of_all = common_notes(findings)
    for found in findings:
        say(console, _in_a_line(found))
        for note in found.notes:
            if note not in of_all:
                say(console, f"  {note}")
    for note in of_all:
        say(console, f"  {note}")
    say(console, f"Report: {out / 'report.html'}")
    if failed:
        raise NonFiniteActivationsError(f"{failed[0]} What was found about the other models is in {out}.")
    return result


def _data_of(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Return the arguments of the first checkpoint's data, or the digits."""
    return next((one.card.data for one in subjects if one.card is not None), {"source": "digits"})


def _sources(data: str | Sequence[str]) -> list[str]:
    return [data] if isinstance(data, str) else list(data)


def _samples(
    subjects: Sequence[Subject],
    source: Sequence[str],
    of_data: Mapping[str, Any],
    *,
    count: int,
    of_images: Mapping[str, Any],
) -> Samples:
    """Load what the models are analysed on; `of_images` are options that models of sequences cannot be given."""
    first = subjects[0]
    if first.task == CLASSIFICATION:
        if len(source) != 1:
            raise UserError(f"--data {' '.join(source)}: images come from one source: name it alone.")
        return load_pictures(
            source[0],
            count=count,
            img_size=of_data.get("img_size"),
            like=first.preprocessing,
            skip_bad=of_images["--skip-bad-images"] or bool(of_data.get("skip_bad_images")),
        )
    for option, value in of_images.items():
        if value not in (None, False):
            raise UserError(f"{option} is for images, and {first.name} is a model of {first.task}: leave it out.")
    need("analyze of text and series", ("tokenizers",), extra="sequences")
    from mpvg.analysis.sequences import load_sequences

    embed = first.model.patch_embed
    return load_sequences(
        source,
        task=first.task,
        count=count,
        channels=embed.in_chans or None,
        impute=of_data["impute"],
    )


def _in_a_line(found: Findings) -> str:
    values = [
        f"{block.name}: {'undefined' if block.correlation.value is None else f'{block.correlation.value:+.2f}'}"
        for block in found.blocks
        if block.position is not None
    ]
    return f"{found.label}: correlation of tokens and position by block: {', '.join(values) or 'nothing is delivered'}."
