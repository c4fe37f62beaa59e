"""`mpvg predict`: what a checkpoint sees in image files, one line of JSON an image."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from jsonargparse import ActionConfigFile

from mpvg.checkpoint import OF_SEQUENCES, AnyCard, Card, load_any
from mpvg.commands.options import device, need_dense
from mpvg.commands.yaml_options import Parser
from mpvg.data.images import BadImageError, find_images
from mpvg.errors import UserError
from mpvg.predict import Classifier, classifier

_AT_A_TIME = 64

_DESCRIPTION = """Name images with a checkpoint of mpvg fit: a line of JSON an image, its five most probable classes.
With a detector's checkpoint the line tells objects, and --out gets pictures and results.json in COCO's format; with a
segmenter's it tells the classes' parts of the image, and --out gets pictures and masks.

examples:
  mpvg predict --ckpt best.ckpt photo.png
  mpvg predict --ckpt best.safetensors photos/ --skip-bad-images > names.jsonl
  mpvg predict --ckpt best.ckpt photos/ --features > embeddings.jsonl
  mpvg predict --ckpt detector.ckpt street.jpg --out found"""


def run(args: Sequence[str]) -> int:
    """Run `mpvg predict` and return its exit code."""
    parser = Parser(prog="mpvg predict", description=_DESCRIPTION)
    add = parser.add_argument
    add("-c", "--config", action=ActionConfigFile, help="YAML file of options")
    add("images", nargs="+", type=str, help="image files, or folders of them")
    add("--ckpt", type=str, required=True, help="the checkpoint: a .ckpt or .safetensors of mpvg fit")
    add("--img-size", type=int, help="side in pixels at which to see images (that of the training)")
    add("--ema", type=bool | None, help="true for the moving average of the weights (as the training evaluated)")
    add("--features", action="store_true", help="print embeddings instead of classes")
    add("--skip-bad-images", action="store_true", help="leave out images that cannot be read, and say which")
    add("--out", type=str, default="runs/predict", help="folder for pictures, results and masks of dense tasks")
    add("--min-score", type=float, default=0.5, help="of the objects that are drawn and told; results.json has all")
    add("--device", type=device, default="cpu", help="auto, cpu, cuda or cuda:N (cpu)")
    options = parser.parse_args(list(args))

    files = [file for path in options.images for file in find_images(Path(path).expanduser())]
    card, model = load_any(options.ckpt, ema=options.ema)
    if not isinstance(card, Card) and card.task in OF_SEQUENCES:
        raise UserError(f"{options.ckpt} is a checkpoint of {card.task}, and mpvg predict looks at images.")
    shown = _names(options, card, model) if isinstance(card, Card) else _dense(options, card, model, files)
    bad: list[BadImageError] = []
    try:
        for index, file in enumerate(files):
            try:
                shown.take(index, file)
            except BadImageError as error:
                bad.append(error)
                if not options.skip_bad_images:
                    break
    finally:
        shown.finish()
    if bad and not options.skip_bad_images:
        raise bad[0].with_option()
    for image in bad:
        print(f"mpvg: left out: {image.path}: {image.reason}", file=sys.stderr)
    if bad:
        print(f"mpvg: {len(bad)} of {len(files)} images were left out as unreadable.", file=sys.stderr)
    return 0


class _Shown(Protocol):
    """Takes images one by one, and prints what is seen in them."""

    def take(self, index: int, file: Path) -> None: ...
    def finish(self) -> None: ...


def _names(options: Any, card: Card, model: Any) -> _Shown:
    seen = classifier(card, model, device=options.device, img_size=options.img_size)
    return _Names(seen, features=options.features)


def _dense(options: Any, card: AnyCard, model: Any, files: Sequence[Path]) -> _Shown:
    need_dense("predict")
    from mpvg.dense.predictor import create_predictor
    from mpvg.dense.written import WrittenPredictions

    for option, value in (("--img-size", options.img_size), ("--features", options.features or None)):
        if value is not None:
            raise UserError(f"{option} is for classification, and {options.ckpt} is for a dense task: leave it out.")
    predictor = create_predictor(card, model, options.device)  # type: ignore[arg-type]  # no classifier's
    out = Path(options.out).expanduser()
    return _Found(WrittenPredictions(predictor, out, files, min_score=options.min_score))


class _Names:
    def __init__(self, classifier: Classifier, *, features: bool) -> None:
        self.classifier, self.features = classifier, features
        self._waiting: list[tuple[Path, Any]] = []

    def take(self, index: int, file: Path) -> None:
        self._waiting.append((file, self.classifier.read(file)))
        if len(self._waiting) == _AT_A_TIME:
            self.finish()

    def finish(self) -> None:
        _print(self.classifier, self._waiting, features=self.features)
        self._waiting.clear()


class _Found:
    def __init__(self, written: Any) -> None:
        self.written = written

    def take(self, index: int, file: Path) -> None:
        print(json.dumps(self.written.add(index, self.written.predictor.read(file))), flush=True)

    def finish(self) -> None:
        self.written.finish()
        print(f"mpvg: pictures and results are in {self.written.out}.", file=sys.stderr)


def _print(classifier: Classifier, images: Sequence[tuple[Path, Any]], *, features: bool) -> None:
    pixels = [pixels for _, pixels in images]
    found: list[dict[str, Any]]
    if features:
        found = [{"features": row.tolist()} for row in classifier.embed(pixels)]
    else:
        found = [
            {"top5": [{"name": guess["name"], "prob": round(guess["prob"], 6)} for guess in guesses]}
            for guesses in classifier.guess(pixels)
        ]
    for (file, _), line in zip(images, found, strict=True):
        print(json.dumps({"file": str(file), **line}), flush=True)
