"""The output folder of a comparison: one file a finished run, so that nothing computed is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mpvg.compare.rates import Job
from mpvg.compare.settings import Settings
from mpvg.data.fingerprint import fingerprint
from mpvg.data.splits import LabelledSet
from mpvg.out import OutFolder
from mpvg.weight_files import hash_of_weights


class RunFolder(OutFolder):
    """A folder of runs of one configuration.

    Args:
        path: The folder.
        settings: The configuration.
        data: The labelled set.
    """

    def __init__(self, path: Path, settings: Settings, data: LabelledSet) -> None:
        hashes = {"data_hash": fingerprint(data), "pretrained_hash": hash_of_weights(settings.pretrained)}
        configuration = {**settings.as_dict(), **hashes}
        results = ("runs/*.json", "runs/*.safetensors", "trials/*.json", "results.csv", "summary.json", "report.html")
        super().__init__(path, configuration, results=results)

    def make(self, *, overwrite: bool) -> None:
        """Make the folder ready; `overwrite` removes the runs of another configuration."""
        self.begin(overwrite=overwrite)
        for kind in ("runs", "trials"):
            (self.path / kind).mkdir(exist_ok=True)

    def file_of(self, job: Job) -> Path:
        name = re.sub(r"[^a-z0-9_]+", "-", job.scheme)
        return self.path / (f"trials/{name}-lr{job.lr!r}.json" if job.trial else f"runs/{name}-seed{job.seed}.json")

    def weights_of(self, job: Job) -> Path:
        return self.file_of(job).with_suffix(".safetensors")

    def finished(self, job: Job) -> dict[str, Any] | None:
        """Return a job's record, or None where it has not finished or its file is damaged."""
        try:
            record = json.loads(self.file_of(job).read_text(encoding="utf-8"))
            complete = "hardware" in record and (job.trial or "shuffled_accuracy" in record)  # older runs have not all
            whole = complete and all(record[key] == value for key, value in job._asdict().items())
            return record if whole else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
