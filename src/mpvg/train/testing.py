"""`mpvg test`: a checkpoint on the images that it was trained on, or on others of the same classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from rich.console import Console

from mpvg.checkpoint import CLASSIFICATION, AnyCard, Card, load_any, resize, task_of
from mpvg.console import say
from mpvg.data.remarks import told_late
from mpvg.errors import UserError
from mpvg.train.build import check_scheme
from mpvg.train.cli import Cli, quiet
from mpvg.train.progress import TrainingProgress
from mpvg.train.tasks import task_called, value_named

_FILES = ("train_annotations", "train_images", "val_annotations", "val_images")
_CHOSEN = ("limit", "min_side", "repeats")  # of the images and objects of one set
_TEST = """Test a checkpoint on the test split of the images it was trained on, or of others of the same classes.
With another --img-size than that of its training, a classifier's position table is resampled.

examples:
  mpvg test --ckpt runs/fit/best.ckpt
  mpvg test --ckpt runs/fit/best.safetensors --data more_images/
  mpvg test --ckpt runs/fit/best.ckpt --img-size 48"""


def run_test(args: Sequence[str], console: Console | None = None) -> int:
    """Run `mpvg test`.

    Args:
        args: Options.
        console: Where to show the result; None for standard output.

    Returns:
        The exit code.

    Raises:
        UserError: Bad input.
    """
    options: dict[str, dict[str, Any]] = {
        "--ckpt": {"type": str, "required": True, "help": "the checkpoint: a .ckpt or .safetensors of mpvg fit"},
        "--ema": {
            "type": bool | None,
            "help": "true for the moving average of weights (as the training evaluated)",
        },
        "--json": {"action": "store_true", "help": "print the result as JSON"},
    }
    console = console or Console()
    with quiet():
        found: dict[str, Any] = {}

        def take_card(config: Any, given: Any) -> None:
            card, model = load_any(config.ckpt, ema=config.ema)
            side = given.get("data.img_size")
            if isinstance(card, Card) and side is not None and (side, side) != card.preprocessing.size:
                card = resize(card, model, (side, side))
            found.update(card=card, model=model)
            _follow_card(found["card"], config, given)

        checkpoint = value_named("ckpt", args)  # where there is none, the parser says so
        task = task_called(task_of(checkpoint) if checkpoint else CLASSIFICATION, command="test")
        cli = Cli(args, task=task, command="test", description=_TEST, options=options, adjust=take_card)
        cli.model.take(found["card"], found["model"], cli.datamodule)
        trainer = cli.trainer_for(None, [TrainingProgress(console)])
        metrics = trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)[0]
    if trainer.global_rank:  # of several processes the first one speaks
        return 0
    images = cli.datamodule.images
    result = {
        "ckpt": cli.config.ckpt,
        "model": cli.model.name,
        "scheme": cli.model.scheme,
        "data": images.name,
        "images": len(images.test) - len(getattr(images.test, "skipped", ())),  # known once they are read
        **{name: None if value is None else round(value, 6) for name, value in _scores(metrics).items()},
    }
    if cli.config.json:
        print(json.dumps(result))
    else:
        say(
            console,
            f"{result['model']} under {result['scheme']} on {result['images']} test images of {result['data']}: "
            f"{_in_words(metrics)}.",
        )
    for remark in told_late(images):
        say(Console(stderr=True) if cli.config.json else console, remark)
    return 0


def _in_words(metrics: Mapping[str, float]) -> str:
    return ", ".join(
        f"loss {value:.4f}" if name == "loss" else f"{name.replace('_', ' ')} {100 * value:.2f} %"
        for name, value in _scores(metrics).items()
        if value is not None and value >= 0  # COCO's measures of sizes that no object has are -1
    )


def _scores(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return what was measured by its own names, the loss last; None where there was nothing to measure."""
    scores = {name.removeprefix("test/"): value if isfinite(value) else None for name, value in metrics.items()}
    return dict(sorted(scores.items(), key=lambda one: one[0] == "loss"))


def _follow_card(card: AnyCard, config: Any, given: Any) -> None:
    """Take the checkpoint's model and, where no other is given, its data."""
    of_card = {"name": card.model, "scheme": card.scheme}
    for option, value in of_card.items():
        named = given.get(f"model.{option}")
        if named is not None and (check_scheme(named) if option == "scheme" else named) != value:
            raise UserError(
                f"{config.ckpt} is a checkpoint of --model.{option} {value!r}, not {named!r}: leave the option out."
            )
        config.model[option] = value
    has_source = given.get("data.source") is not None  # and with it the files of another set
    is_other = has_source or any(given.get(f"data.{option}") is not None for option in _FILES)
    left = {"seed", *(_FILES if has_source else ()), *(_CHOSEN if is_other else ())}
    for option, value in card.data.items():
        if option not in left and given.get(f"data.{option}") is None:
            config.data[option] = value
    if not isinstance(card, Card):
        return
    height, width = card.preprocessing.size
    if "data.source" in given and given.get("data.img_size") is None and height == width:
        config.data.img_size = height
