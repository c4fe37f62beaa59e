"""Predictions as files: pictures for people, COCO's results or class maps for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpvg.dense.drawing import draw_class_map, draw_detections
from mpvg.dense.measures import to_coco_results
from mpvg.dense.predictor import Detector, Segmenter, as_lines, image_ids, write_mask
from mpvg.files import write_atomically

RESULTS = "results.json"


class WrittenPredictions:
    """What a detector or a segmenter finds in images, written into a folder image by image.

    pictures/ holds the images with what was found drawn in; a detector writes results.json in COCO's format of results,
    a segmenter masks/ with the classes' numbers.

    Args:
        predictor: What predicts.
        out: The folder; files of the same names in it are replaced.
        files: All images that may come, by whose places they are named later.
        min_score: Of the objects that are drawn and told; results.json has all.
    """

    def __init__(
        self, predictor: Detector | Segmenter, out: Path, files: Sequence[Path], *, min_score: float = 0.5
    ) -> None:
        self.predictor, self.out, self.files, self.min_score = predictor, out, files, min_score
        self.ids = image_ids([str(file) for file in files])
        self._stems = _different_stems(files)
        self._results: list[dict[str, Any]] = []

    def add(self, index: int, pixels: npt.NDArray[np.uint8]) -> dict[str, Any]:
        """Predict an image that the predictor has read, and write its picture.

        Args:
            index: Its place among the files.
            pixels: (H, W, 3).

        Returns:
            What there is to tell of it; JSON-able.
        """
        file = str(self.files[index])
        if isinstance(self.predictor, Detector):
            found = self.predictor.detect(pixels, file=file)
            self._results += to_coco_results([found._asdict()], [self.ids[index]], self.predictor.card.category_ids)
            self._save_picture(draw_detections(pixels, found, min_score=self.min_score), index)
            return {"file": file, "objects": [one for one in as_lines(found) if one["score"] >= self.min_score]}
        mapped = self.predictor.segment(pixels, file=file)
        write_mask(self._made("masks") / f"{self._stems[index]}.png", mapped, self.predictor.card.category_ids)
        background = (0,) if self.predictor.card.data.get("background") else ()
        self._save_picture(draw_class_map(pixels, mapped, self.predictor.classes, hidden=background), index)
        labels, counts = np.unique(mapped.labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        parts = {self.predictor.classes[labels[i]]: round(float(counts[i] / mapped.labels.size), 6) for i in order}
        return {"file": file, "parts": parts}

    def finish(self) -> None:
        """Write what is of all images."""
        if isinstance(self.predictor, Detector):
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomically(self.out / RESULTS, (json.dumps(self._results) + "\n").encode())

    def _save_picture(self, picture: Any, index: int) -> None:
        file = self._made("pictures") / f"{self._stems[index]}.png"
        write_atomically(file, lambda draft: picture.save(draft, format="PNG"))

    def _made(self, name: str) -> Path:
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _different_stems(files: Sequence[Path]) -> list[str]:
    """Return names for what is written of files, all different, also where capitals do not count."""
    known = Counter(file.stem.casefold() for file in files)
    used = {stem for stem, count in known.items() if count == 1}
    stems = []
    for file in files:
        stem, number = file.stem, 1
        while known[file.stem.casefold()] > 1 and stem.casefold() in used:
            stem, number = f"{file.stem}-{number + 1}", number + 1
        used.add(stem.casefold())
        stems.append(stem)
    return stems
