"""`mpvg fit`: one training, which goes on from where it was stopped."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from mpvg.checkpoint import CLASSIFICATION, load_any, save_safetensors
from mpvg.commands.options import rates as rates_of
from mpvg.console import say
from mpvg.data.fingerprint import fingerprint
from mpvg.data.remarks import remarks, told_late
from mpvg.data.splits import ImageData
from mpvg.errors import UserError
from mpvg.files import write_atomically
from mpvg.out import OutFolder, locked, source_name
from mpvg.train.checkpoints import BEST, LAST, BestAndLast, to_go_on_from
from mpvg.train.cli import Cli, quiet
from mpvg.train.failing import with_what_was_kept
from mpvg.train.processes import check_equal_parts, wait_for_all
from mpvg.train.progress import Stopwatch, TrainingProgress
from mpvg.train.stopping import BetweenSteps, Signals, Stopped
from mpvg.train.sweep import Fitted, sweep
from mpvg.train.tasks import task_called, value_named
from mpvg.train.training import Training
from mpvg.weight_files import hash_of_weights

_DEBUG_BATCH = 4
_RESULTS = ("*.ckpt", "*.safetensors")
_OF_THE_TRAINER = (  # what changes the weights that come out
    "max_epochs", "max_steps", "max_time", "min_epochs", "min_steps", "precision", "plugins", "callbacks",
    "sync_batchnorm", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "overfit_batches",
    "limit_train_batches", "limit_val_batches", "val_check_interval", "check_val_every_n_epoch",
)  # fmt: skip
MAY_CHANGE = (  # what changes them by rounding at most, or by what several processes and a compiler draw for dropout
    "save_every", "data.workers", "model.compile", "trainer.accelerator", "trainer.devices", "trainer.num_nodes",
    "trainer.strategy", "trainer.logger", "trainer.log_every_n_steps", "trainer.enable_progress_bar",
)  # fmt: skip
_OF_STREAMS = ("data.workers", "trainer.devices", "trainer.num_nodes")  # by which the order of their images goes

_FIT = """Train one model on labelled images, or with --task detection or segmentation on annotated ones; the same
command goes on from where it was stopped.
--data, --img-size, --val-fraction and --skip-bad-images stand for the options of --data.*, as in mpvg compare, --lr for
--model.recipe.lr. Of several rates, --lr A,B, the validation split chooses one.

examples:
  mpvg fit
  mpvg fit --data my_images/ --img-size 32 --model.scheme lape --trainer.max_epochs 30
  mpvg fit --config recipes/cifar100/vit_lite_7_4.yaml --data cifar100/ --model.scheme lape
  mpvg fit --config my.yaml --lr 0.0005,0.001,0.002
  mpvg fit --config recipes/coco/mask_rcnn_vit_adapter_tiny_3x_ms.yaml --data coco/ --model.pretrained best.ckpt
  mpvg fit --print_config > my.yaml"""


def run_fit(args: Sequence[str], console: Console | None = None) -> int:
    """Run `mpvg fit`; SIGTERM ends it between two steps, with a checkpoint.

    Args:
        args: Options.
        console: Where to show progress; None for standard output.

    Returns:
        The exit code.

    Raises:
        UserError: Bad input.
        NonFiniteLossError: The loss turned NaN; what was kept is named.
    """
    console = console or Console()
    rates, args = _take_rates(args)
    signals = Signals()
    with signals.handled():
        try:
            _fit_at_each(rates, args, console, signals)
        except Stopped as stopped:
            say(console, str(stopped))
    return 0


def _fit_at_each(rates: Sequence[float], args: Sequence[str], console: Console, signals: Signals) -> None:
    if len(rates) < 2:
        _fit([*args, *(f"--model.recipe.lr={rate}" for rate in rates)], console, signals)
        return
    with quiet():
        cli = _command_line(args)

    def fit_at(rate: float, out: Path) -> Fitted:
        signals.check()
        return _fit([*args, f"--model.recipe.lr={rate}", f"--out={out}"], console, signals, chooses=True)

    sweep(rates, fit_at, _out_folder(cli), console)


def _take_rates(args: Sequence[str]) -> tuple[tuple[float, ...], list[str]]:
    """Take --lr A,B out of the options; a YAML file sets one rate, under model.recipe.lr."""
    rest, found = [], ""
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if option == "--lr":
            found = value if equals else next(words, "")
            if not found:
                raise UserError("--lr without a rate: name one or more, such as --lr 0.0005,0.001.")
        else:
            rest.append(word)
    try:
        return (rates_of(found) if found else ()), rest
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--lr: {error}; see mpvg fit --help.") from error


def _command_line(args: Sequence[str]) -> Any:
    options: dict[str, dict[str, Any]] = {
        "--out": {"type": str | None, "help": "folder for results (runs/fit-DATA-MODEL-SCHEME)"},
        "--overwrite": {"action": "store_true", "help": "begin anew where the folder holds another configuration"},
        "--save_every": {"type": int | None, "help": "steps between checkpoints, beside that of each epoch's end"},
        "--debug": {"type": bool, "default": False, "help": "true for two small steps, on generated images by default"},
    }
    named = {word.partition("=")[0] for word in args} & {"--data", "--data.source"}

    def cut_short(config: Any, given: Any) -> None:
        _cut_short(config, on_own_images=bool(named))

    task = task_called(value_named("task", args) or CLASSIFICATION, command="fit")
    cli = Cli(args, task=task, command="fit", description=_FIT, options=options, adjust=cut_short)
    epochs = cli.config.trainer.max_epochs
    if epochs is None or epochs < 1:
        raise UserError(f"--trainer.max_epochs {epochs}: name a number of epochs, 1 or more.")
    every = cli.config.save_every
    if every is not None and every < 1:
        raise UserError(f"--save_every {every}: name a number of steps, 1 or more.")
    return cli


def _out_folder(cli: Any) -> Path:
    scheme = re.sub(r"[^a-z0-9_]+", "-", cli.model.scheme)
    named = f"runs/fit-{source_name(cli.datamodule.source)}-{cli.model.name}-{scheme}"
    return Path(cli.config.out or named).expanduser()


def _fit(args: Sequence[str], console: Console, signals: Signals, *, chooses: bool = False) -> Fitted:
    with quiet():
        cli = _command_line(args)
        model, data = cli.model, cli.datamodule
        accumulated = cli.config.trainer.accumulate_grad_batches
        model.build_for(data, seed=int(cli.config.seed_everything), accumulated=accumulated)
        if chooses and data.watches_test:
            raise UserError("--lr: several rates need a validation split to choose by: name --val-fraction 0.1, say.")
        out = _out_folder(cli)
        if _rank():  # of several processes the first has the folder
            console.quiet = True
            return _train(cli, out, console, signals, chooses=chooses)
        with locked(out):
            fixed = _OF_STREAMS if data.streaming else ()
            may_change = [f"--{name}" for name in MAY_CHANGE if name not in fixed]
            folder = OutFolder(out, _configuration(cli), results=_RESULTS, may_change=may_change)
            folder.begin(overwrite=cli.config.overwrite)
            if cli.config.debug:  # from the first step each time
                folder.replace_all()
            write_atomically(out / "config.yaml", cli.parser.dump(cli.config, skip_validation=True))
            return _train(cli, out, console, signals, chooses=chooses)


def _cut_short(config: Any, *, on_own_images: bool) -> None:
    """Make two steps of a training whose settings are being tried."""
    if not config.debug:
        return
    if not on_own_images:
        config.data.source = "generated"
    cut = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "check_val_every_n_epoch": 1}
    for option, value in cut.items():
        config.trainer[option] = value
    config.data.batch_size = min(config.data.batch_size, _DEBUG_BATCH)
    config.out = f"{config.out}-debug" if config.out else "runs/debug"  # never over what was trained
    config.overwrite = True


def _train(cli: Any, out: Path, console: Console, signals: Signals, *, chooses: bool) -> Fitted:
    model, data = cli.model, cli.datamodule
    checkpoints: dict[str, Any] = {"dirpath": out, "auto_insert_metric_name": False, "enable_version_counter": False}
    last = BestAndLast(filename="last", save_on_train_epoch_end=True, **checkpoints)
    best = None
    if not data.watches_test:
        best = BestAndLast(filename="best", monitor=model.watched, mode="max", **checkpoints)
    between = BetweenSteps(out / LAST, every=cli.config.save_every, signals=signals)
    callbacks = [TrainingProgress(console), Stopwatch(), between, *([] if best is None else [best]), last]
    trainer = cli.trainer_for(out, callbacks)
    model.signals = signals
    if chooses and trainer.world_size > 1:
        raise UserError("--lr: several rates are tried by one process each: name --trainer.devices 1, or one rate.")
    check_equal_parts(data.images_a_step, trainer.world_size)
    wait_for_all(trainer)
    say(console, f"{model.name} under {model.scheme} on {data.images.name}. {data.images.note}")
    watched = "of the test split to watch, by which no epoch is chosen" if data.watches_test else "to validate on"
    say(console, f"{len(data.train)} images to train on, {len(data.val)} {watched}. Results: {out}.")
    for remark in [*_start(model), *remarks(data.images)]:
        say(console, remark)
    resumed = to_go_on_from(out, console, processes=trainer.world_size, streaming=data.streaming, clears=not _rank())
    try:
        with signals.awaited():
            trainer.fit(model, datamodule=data, ckpt_path=resumed, weights_only=True)
    except BaseException as error:
        told = with_what_was_kept(error, trainer, out)
        if told is error:
            raise
        raise told from error
    finally:
        data.teardown("fit")
    for remark in told_late(data.images):
        say(console, remark)
    return Fitted(None, None) if _rank() else _finish(out, best, console, score=cli.task.score)


def _finish(out: Path, best: BestAndLast | None, console: Console, *, score: str) -> Fitted:
    """Write the weights of the epoch that counts beside its checkpoint, and say where they are."""
    checkpoint = out / (LAST if best is None else BEST)
    if not checkpoint.is_file() or (best is not None and not _is_measured(best.best_model_score)):
        say(console, "No epoch was validated and kept as the best.")
        return Fitted(None, None)
    card, model = load_any(checkpoint)
    weights = checkpoint.with_suffix(".safetensors")
    save_safetensors(weights, card, model)
    told, reached = "The last epoch", None
    if best is not None and best.best_model_score is not None:
        reached = float(best.best_model_score)
        told = f"Best validation {score} {100 * reached:.2f} %"
    of_average = ", of the moving average of weights" if card.ema else ""
    say(console, f"{told}{of_average}, in {checkpoint} and {weights}.")
    say(console, f"Next: mpvg test --ckpt {checkpoint}, or mpvg predict --ckpt {checkpoint} IMAGE ...")
    return Fitted(checkpoint, reached)


def _is_measured(score: Any) -> bool:
    return score is not None and 0 <= float(score) < float("inf")


def _start(model: Training) -> list[str]:
    """Say which weights a training starts from, and what of them could not be taken over."""
    if not model.pretrained:
        return []
    source = f"the weights of {model.name}" if model.pretrained is True else model.pretrained
    return [f"It starts from {source}" + "".join(f"; {told}" for told in model.told) + "."]


def _configuration(cli: Any) -> dict[str, Any]:
    """Return what a training that goes on must share with its beginning."""
    model, data = cli.model, cli.datamodule
    of_trainer = json.loads(cli.parser.dump(cli.config, format="json", skip_validation=True))["trainer"]
    of_data = data.arguments()
    if not data.streaming:
        del of_data["workers"]  # of which nothing depends
    return {
        "task": cli.task.name,
        "model": model.name,
        "scheme": model.scheme,
        "arguments": model.arguments,
        "pretrained": model.pretrained,
        "pretrained_hash": hash_of_weights(model.pretrained),
        "preserve": model.preserve,
        **model.settings(),
        **model.recipe.as_dict(),
        "data": of_data.pop("source"),
        **of_data,
        "normalisation": [list(part) for part in data.normalisation] if data.normalisation else None,
        "batch_size": data.batch_size,
        **{name: of_trainer.get(name) for name in _OF_THE_TRAINER},
        "data_hash": fingerprint(data.images) if isinstance(data.images, ImageData) else data.images.fingerprint(),
    }


def _rank() -> int:
    rank: int = getattr(rank_zero_only, "rank", 0)
    return rank
