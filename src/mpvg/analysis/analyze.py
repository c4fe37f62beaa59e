"""`mpvg analyze` as a function: models and images in, a report, figures and tables out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from mpvg.analysis.pictures import load_pictures, spread
from mpvg.analysis.record import NonFiniteActivationsError
from mpvg.analysis.results import Findings
from mpvg.analysis.statements import statements
from mpvg.analysis.study import passes, study
from mpvg.analysis.subjects import Subject, load_subjects
from mpvg.analysis.tables import as_json, measures_csv, statements_csv
from mpvg.compare.summary import versions
from mpvg.console import progress_bar, say
from mpvg.errors import UserError
from mpvg.files import write_atomically
from mpvg.out import OutFolder, locked
from mpvg.report.analysis import write_analysis_report

_CAUSAL_IMAGES = 256
_SHOWN = 4  # images whose token norms are drawn
_RESULTS = ("report.html", "analysis.json", "measures.csv", "statements.csv", "figures/*")


def analyze(
    models: Sequence[str],
    *,
    out: Path,
    data: str | None = None,
    images: int = 512,
    causal_images: int | None = None,
    show: Sequence[int] | None = None,
    scheme: str = "mpvg",
    img_size: int | None = None,
    pretrained: bool = False,
    folded: bool = False,
    skip_bad_images: bool = False,
    device: str = "cpu",
    command: str = "",
    console: Console | None = None,
) -> dict[str, Any]:
    """Analyse models side by side, and write what was found.

    Args:
        models: Checkpoints, folders of them, or names; see `load_subjects`.
        out: Folder for report.html, figures, analysis.json and measures.csv.
        data: Source of images; by default the first checkpoint's own, or the digits where there is none.
        images: How many, spread evenly.
        causal_images: How many of these the causal test takes; 0 leaves it out, None means up to 256.
        show: Numbers, among the images analysed, of those whose token norms are drawn; None for four of them.
        scheme: Of registered models that are named without one.
        img_size: Side of the images in pixels, for models that are created.
        pretrained: Load timm's weights into models that are created.
        folded: Fold each layer-wise model first.
        skip_bad_images: Leave out images that cannot be read.
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
    of_data: dict[str, Any] = _images_of(subjects) if data is None else {"source": data}
    pictures = load_pictures(
        of_data["source"],
        count=images,
        img_size=of_data.get("img_size"),
        like=subjects[0].preprocessing,
        skip_bad=skip_bad_images or bool(of_data.get("skip_bad_images")),
    )
    shown = spread(pictures.count, _SHOWN) if show is None else sorted(set(show))
    if any(image >= pictures.count for image in shown):
        raise UserError(f"--show {max(shown)}: {pictures.count} images are analysed, numbered from 0.")
    causal_images = _CAUSAL_IMAGES if causal_images is None else causal_images
    configuration = {"analysis": list(models), "command": command, "data": of_data["source"]}
    folder = OutFolder(out, configuration, results=_RESULTS)
    with locked(out):
        folder.refuse_another_command()
        say(console, f"{len(subjects)} {'model' if len(subjects) == 1 else 'models'}. {pictures.note}")
        findings: list[Findings] = []
        failed: list[NonFiniteActivationsError] = []
        with progress_bar(console, "batches") as bar:
            for subject in subjects:
                task = bar.add_task(subject.label, total=passes(subject, pictures, causal_images=causal_images))
                step = partial(bar.advance, task)
                try:
                    found = study(
                        subject, pictures, shown=shown, causal_images=causal_images, device=device, report=step
                    )
                    findings.append(found)
                except NonFiniteActivationsError as error:
                    failed.append(NonFiniteActivationsError(f"{subject.name}: {error}"))
        if not findings:
            raise failed[0]
        tested = statements(findings)
        result = {
            "command": command,
            "data": pictures.note,
            "versions": versions(),
            "models": [as_json(found) for found in findings],
            "statements": [statement.as_json() for statement in tested],
        }
        folder.replace_all()  # only now, so that an analysis that fails leaves an earlier one as it was
        write_atomically(out / "analysis.json", json.dumps(result, indent=1, allow_nan=False))
        write_atomically(out / "measures.csv", measures_csv(findings))
        write_atomically(out / "statements.csv", statements_csv(tested))
        write_analysis_report(findings, tested, out, command=command, data=pictures.note, versions=versions())
    for found in findings:
        say(console, _in_a_line(found))
        for note in found.notes:
            say(console, f"  {note}")
    say(console, f"Report: {out / 'report.html'}")
    if failed:
        raise NonFiniteActivationsError(f"{failed[0]} What was found about the other models is in {out}.")
    return result


def _images_of(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Return the arguments of the first checkpoint's data, or the digits."""
    return next((one.card.data for one in subjects if one.card is not None), {"source": "digits"})


def _in_a_line(found: Findings) -> str:
    values = [
        f"{block.name}: {'undefined' if block.correlation.value is None else f'{block.correlation.value:+.2f}'}"
        for block in found.blocks
        if block.position is not None
    ]
    return f"{found.label}: correlation of tokens and position by block: {', '.join(values) or 'nothing is delivered'}."
