"""`mpvg fit` and `mpvg test`: Lightning's command line around the images, the model and the recipe."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from mpvg.checkpoint import Card, load_model, read_checkpoint, resize, save_safetensors
from mpvg.commands.yaml_options import HelpFormatter, OneLineErrors
from mpvg.console import say
from mpvg.data.fingerprint import fingerprint
from mpvg.data.remarks import remarks
from mpvg.errors import NonFiniteLossError, UserError
from mpvg.out import OutFolder, locked, source_name
from mpvg.train.build import check_scheme
from mpvg.train.checkpoints import BestAndLast, WholeCheckpoints
from mpvg.train.data import ImageDataModule
from mpvg.train.module import ImageClassification
from mpvg.train.progress import TrainingProgress
from mpvg.weight_files import hash_of_weights

LAST, BEST, WEIGHTS = "last.ckpt", "best.ckpt", "best.safetensors"
_RESULTS = ("*.ckpt", WEIGHTS)
_OF_THE_TRAINER = (  # what changes the weights that come out
    "max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
    "limit_train_batches", "limit_val_batches", "overfit_batches", "val_check_interval", "check_val_every_n_epoch",
)  # fmt: skip
_AS_IN_COMPARE = {
    "--data": "--data.source",
    "--img-size": "--data.img_size",
    "--val-fraction": "--data.val_fraction",
    "--skip-bad-images": "--data.skip_bad_images=true",
}

_FIT = """Train one model on labelled images; the same command goes on from where it was stopped.
--data, --img-size, --val-fraction and --skip-bad-images stand for the options of --data.*, as in mpvg compare.

examples:
  mpvg fit
  mpvg fit --data my_images/ --img-size 32 --model.scheme lape --trainer.max_epochs 30
  mpvg fit --config my.yaml --model.recipe.lr 0.001
  mpvg fit --print_config > my.yaml"""

_TEST = """Test a checkpoint on the test split of the images it was trained on, or of others of the same classes.
With another --img-size than that of its training, its position table is resampled.

examples:
  mpvg test --ckpt runs/fit/best.ckpt
  mpvg test --ckpt runs/fit/best.safetensors --data more_images/
  mpvg test --ckpt runs/fit/best.ckpt --img-size 48"""


class Parser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser, with errors that are one line."""


class Cli(LightningCLI):
    """Model, data and trainer from options and YAML files."""

    def __init__(
        self,
        args: Sequence[str],
        *,
        command: str,
        description: str,
        options: dict[str, dict[str, Any]],
        adjust: Callable[[Any, Any], None] = lambda config, given: None,
    ) -> None:
        words = (word.partition("=") for word in args)
        args = ["".join((_AS_IN_COMPARE.get(option, option), *value)) for option, *value in words]
        self.options = options
        self.adjust = adjust
        super().__init__(
            ImageClassification,
            ImageDataModule,
            args=args,
            run=False,
            parser_class=Parser,
            parser_kwargs={
                "prog": f"mpvg {command}",
                "usage": f"mpvg {command} [--config FILE] [--OPTION VALUE ...]",
                "description": description,
                "formatter_class": HelpFormatter,
            },
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={"max_epochs": 50, "num_sanity_val_steps": 0, "enable_model_summary": False},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, option in self.options.items():
            parser.add_argument(name, **option)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)  # Lightning's own warns where sys.argv has words too
        self.adjust(self.config, parser.parse_args(args, defaults=False))

    def instantiate_trainer(self, **settings: Any) -> Any:
        """Leave the trainer until its folder is known."""

    def trainer_for(self, folder: Path | None, callbacks: list[Any]) -> Any:
        """Create the trainer, which writes its logs to a folder, if any."""
        settings = dict(self.config_init["trainer"])
        if settings["enable_progress_bar"] is False or settings["barebones"]:
            callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
        if settings["enable_checkpointing"] is False or settings["fast_dev_run"] or settings["barebones"]:
            callbacks = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
        settings["default_root_dir"] = settings["default_root_dir"] or str(folder or ".")
        if settings["logger"] is None and not settings["barebones"]:
            logs = [CSVLogger(folder, name="csv"), TensorBoardLogger(folder, name="tensorboard")] if folder else False
            settings["logger"] = logs
        if settings["log_every_n_steps"] is None and not settings["barebones"]:
            settings["log_every_n_steps"] = min(10, self.datamodule.steps_an_epoch)
        plugins = settings["plugins"] or []
        settings["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), WholeCheckpoints()]
        try:
            return self._instantiate_trainer(settings, callbacks)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise UserError(f"--trainer: {error}") from error


def run_fit(args: Sequence[str], console: Console | None = None) -> int:
    """Run `mpvg fit`.

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
    options: dict[str, dict[str, Any]] = {
        "--out": {"type": str | None, "help": "folder for results (runs/fit-DATA-MODEL-SCHEME)"},
        "--overwrite": {"action": "store_true", "help": "begin anew where the folder holds another configuration"},
    }
    with _quiet():
        cli = Cli(args, command="fit", description=_FIT, options=options)
        epochs = cli.config.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise UserError(f"--trainer.max_epochs {epochs}: name a number of epochs, 1 or more.")
        model, data = cli.model, cli.datamodule
        model.build_for(data, seed=int(cli.config.seed_everything))
        scheme = re.sub(r"[^a-z0-9_]+", "-", model.scheme)
        out = Path(cli.config.out or f"runs/fit-{source_name(data.source)}-{model.name}-{scheme}").expanduser()
        if _rank():  # of several processes the first has the folder
            console.quiet = True
            _train(cli, out, console)
            return 0
        with locked(out):
            OutFolder(out, _configuration(cli), results=_RESULTS).begin(overwrite=cli.config.overwrite)
            cli.parser.save(cli.config, out / "config.yaml", overwrite=True, skip_validation=True)
            _train(cli, out, console)
    return 0


def _train(cli: Any, out: Path, console: Console) -> None:
    model, data = cli.model, cli.datamodule
    checkpoints: dict[str, Any] = {"dirpath": out, "auto_insert_metric_name": False, "enable_version_counter": False}
    best = BestAndLast(filename="best", monitor="val/accuracy", mode="max", **checkpoints)
    last = BestAndLast(filename="last", save_on_train_epoch_end=True, **checkpoints)
    trainer = cli.trainer_for(out, [TrainingProgress(console), best, last])
    resumed = out / LAST if (out / LAST).is_file() else None
    say(console, f"{model.name} under {model.scheme} on {data.images.name}. {data.images.note}")
    say(console, f"{len(data.train)} images to train on, {len(data.val)} to validate on. Results: {out}.")
    for remark in [*_start(model), *remarks(data.images)]:
        say(console, remark)
    if resumed:
        read_checkpoint(resumed)  # says what is wrong with it, if anything
        say(console, f"Going on from {resumed}, after epoch {_epoch(resumed)}.")
    try:
        trainer.fit(model, datamodule=data, ckpt_path=resumed, weights_only=True)
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{error} {_kept(out)}") from error
    except SystemExit as error:  # which Lightning makes of Ctrl-C
        raise KeyboardInterrupt from error
    if best.best_model_score is None:
        say(console, "No epoch was validated and kept as the best.")
    elif _rank() == 0:
        card, kept = load_model(out / BEST)
        save_safetensors(out / WEIGHTS, card, kept)
        score = f"{100 * best.best_model_score:.2f} %"
        say(console, f"Best validation accuracy {score}, in {out / BEST} and {out / WEIGHTS}.")
        say(console, f"Next: mpvg test --ckpt {out / BEST}, or mpvg predict --ckpt {out / BEST} IMAGE ...")


def _start(model: ImageClassification) -> list[str]:
    """Say which weights a training starts from, and what of them could not be taken over."""
    if not model.pretrained:
        return []
    source = f"the weights of {model.name}" if model.pretrained is True else model.pretrained
    return [f"It starts from {source}" + "".join(f"; {told}" for told in model.told) + "."]


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
        "--json": {"action": "store_true", "help": "print the result as JSON"},
    }
    console = console or Console()
    with _quiet():
        found: dict[str, Any] = {}

        def take_card(config: Any, given: Any) -> None:
            card, model = load_model(config.ckpt)
            side = given.get("data.img_size")
            if side is not None and (side, side) != card.preprocessing.size:
                card = resize(card, model, (side, side))
            found.update(card=card, model=model)
            _follow_card(found["card"], config, given)

        cli = Cli(args, command="test", description=_TEST, options=options, adjust=take_card)
        cli.model.take(found["card"], found["model"], cli.datamodule)
        trainer = cli.trainer_for(None, [TrainingProgress(console)])
        metrics = trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)[0]
    images = cli.datamodule.images
    result = {
        "ckpt": cli.config.ckpt,
        "model": cli.model.name,
        "scheme": cli.model.scheme,
        "data": images.name,
        "images": len(images.test),
        "accuracy": round(metrics["test/accuracy"], 6),
        "loss": round(metrics["test/loss"], 6),
    }
    if cli.config.json:
        print(json.dumps(result))
    else:
        say(
            console,
            f"{result['model']} under {result['scheme']} on {result['images']} test images of {result['data']}: "
            f"accuracy {100 * result['accuracy']:.2f} %, loss {result['loss']:.4f}.",
        )
    return 0


def _follow_card(card: Card, config: Any, given: Any) -> None:
    """Take the checkpoint's model and, where no other is given, its data."""
    of_card = {"name": card.model, "scheme": card.scheme}
    for option, value in of_card.items():
        named = given.get(f"model.{option}")
        if named is not None and (check_scheme(named) if option == "scheme" else named) != value:
            raise UserError(
                f"{config.ckpt} is a checkpoint of --model.{option} {value!r}, not {named!r}: leave the option out."
            )
        config.model[option] = value
    for option, value in card.data.items():
        if option != "seed" and given.get(f"data.{option}") is None:
            config.data[option] = value
    height, width = card.preprocessing.size
    if "data.source" in given and given.get("data.img_size") is None and height == width:
        config.data.img_size = height


def _configuration(cli: Any) -> dict[str, Any]:
    """Return what a training that goes on must share with its beginning."""
    model, data = cli.model, cli.datamodule
    of_data = data.arguments()
    return {
        "model": model.name,
        "scheme": model.scheme,
        "arguments": model.arguments,
        "pretrained": model.pretrained,
        "pretrained_hash": hash_of_weights(model.pretrained),
        "preserve": model.preserve,
        **asdict(model.recipe),
        "data": of_data.pop("source"),
        **of_data,
        "batch_size": data.batch_size,
        **{name: cli.config.trainer[name] for name in _OF_THE_TRAINER},
        "data_hash": fingerprint(data.images),
    }


def _rank() -> int:
    rank: int = getattr(rank_zero_only, "rank", 0)
    return rank


def _kept(out: Path) -> str:
    files = [out / name for name in (LAST, BEST) if (out / name).is_file()]
    if not files:
        return "No epoch had ended, so nothing was kept."
    return "Kept: " + ", ".join(f"{file} of epoch {_epoch(file)}" for file in files) + "."


def _epoch(checkpoint: Path) -> int:
    return 1 + int(torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Lightning says of itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield
