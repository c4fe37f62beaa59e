"""Lightning's command line around the images, the model and the recipe."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mpvg.commands.yaml_options import HelpFormatter, OneLineErrors
from mpvg.errors import UserError
from mpvg.train.checkpoints import WholeCheckpoints
from mpvg.train.sharded import ShardedStrategy
from mpvg.train.tasks import TASKS, Task

_AS_IN_COMPARE = {
    "--data": "--data.source",
    "--img-size": "--data.img_size",
    "--val-fraction": "--data.val_fraction",
    "--skip-bad-images": "--data.skip_bad_images=true",
}


class Parser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser, with errors that are one line."""


class Cli(LightningCLI):
    """Model, data and trainer from options and YAML files."""

    def __init__(
        self,
        args: Sequence[str],
        *,
        task: Task,
        command: str,
        description: str,
        options: dict[str, dict[str, Any]],
        adjust: Callable[[Any, Any], None] = lambda config, given: None,
    ) -> None:
        words = (word.partition("=") for word in args)
        args = ["".join((_AS_IN_COMPARE.get(option, option), *value)) for option, *value in words]
        self.task = task
        self.options = options
        self.adjust = adjust
        super().__init__(
            task.model,
            task.data,
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
        what_for = f"what to train for: {', '.join(TASKS)} ({self.task.name})"
        parser.add_argument("--task", type=str, default=self.task.name, help=what_for)
        for name, option in self.options.items():
            parser.add_argument(name, **option)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)  # Lightning's own warns where sys.argv has words too
        self.config.task = self.task.name
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
        if str(settings["strategy"]).startswith("fsdp"):
            settings["strategy"] = self._sharded(settings["strategy"], str(settings["precision"]))
        try:
            if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
                settings["plugins"].append(SLURMEnvironment(auto_requeue=False))  # we go on from last.ckpt alone
            return self._instantiate_trainer(settings, callbacks)
        except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"--trainer: {error}") from error

    def _sharded(self, strategy: str, precision: str) -> ShardedStrategy:
        """Return our FSDP; Lightning's own is for GPUs alone, and its checkpoints are no other's."""
        if strategy != "fsdp":
            raise UserError(f"--trainer.strategy {strategy} is not supported: name fsdp.")
        if precision.startswith("16"):
            raise UserError(f"--trainer.precision {precision} with fsdp: take bf16-mixed.")
        if self.model.compile_mode is not None:
            raise UserError(f"--model.compile {self.model.compile_mode} with fsdp: leave it out, or take ddp.")
        return ShardedStrategy()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what Lightning says of itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield
