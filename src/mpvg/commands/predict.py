"""`mpvg predict`: name or embed image files with a checkpoint, one line of JSON an image."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile

from mpvg.commands.options import device
from mpvg.commands.yaml_options import Parser
from mpvg.data.images import BadImageError, find_images
from mpvg.predict import Classifier, load

_AT_A_TIME = 64

_DESCRIPTION = """Name images with a checkpoint of mpvg fit: a line of JSON an image, its five most probable classes.

examples:
  mpvg predict --ckpt best.ckpt photo.png
  mpvg predict --ckpt best.safetensors photos/ --skip-bad-images > names.jsonl
  mpvg predict --ckpt best.ckpt photos/ --features > embeddings.jsonl"""


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
    add("--device", type=device, default="cpu", help="auto, cpu, cuda or cuda:N (cpu)")
    options = parser.parse_args(list(args))

    files = [file for path in options.images for file in find_images(Path(path).expanduser())]
    classifier = load(options.ckpt, device=options.device, img_size=options.img_size, ema=options.ema)
    bad: list[BadImageError] = []
    waiting: list[tuple[Path, Any]] = []
    for file in files:
        try:
            waiting.append((file, classifier.read(file)))
        except BadImageError as error:
            bad.append(error)
            if not options.skip_bad_images:
                break
        if len(waiting) == _AT_A_TIME:
            _print(classifier, waiting, features=options.features)
            waiting.clear()
    _print(classifier, waiting, features=options.features)
    if bad and not options.skip_bad_images:
        raise bad[0].with_option()
    for image in bad:
        print(f"mpvg: left out: {image.path}: {image.reason}", file=sys.stderr)
    if bad:
        print(f"mpvg: {len(bad)} of {len(files)} images were left out as unreadable.", file=sys.stderr)
    return 0


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
