"""What every training on Lightning has, whatever for: rates, seeds, a watch on the loss, whole checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Protocol

import lightning
import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from mpvg.errors import NonFiniteLossError, UserError, nearest
from mpvg.train.checkpoints import PROCESSES
from mpvg.train.dropout import cheapen_dropout
from mpvg.train.processes import check_together, share_buffers
from mpvg.train.steps import LossWatch, over_processes, seed_step
from mpvg.train.stopping import Signals
from mpvg.weight_files import CARD

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


class KeptCard(Protocol):
    """What a checkpoint tells of its model."""

    def as_dict(self) -> dict[str, Any]: ...


class Training(lightning.LightningModule):
    """A model under a position scheme that a recipe trains; what for, the kinds of training say.

    Args:
        name: Of the model.
        scheme: Canonical text of its position scheme.
        arguments: Further arguments of its constructor.
        pretrained: Weights to start from; false for none.
        preserve: Whether to start from what these compute.
        compile: How torch.compile compiles the model; None leaves it.

    Attributes:
        watched: Under which name the best epoch's score is logged.
        told: What of the pretrained weights was not taken over.
        signals: Those that came; `mpvg fit` puts those here that it handles.
        first_step: From which the training goes on.
    """

    watched: ClassVar[str]
    card: KeptCard | None
    model: Any
    seed: int
    images: int

    def __init__(
        self,
        *,
        name: str,
        scheme: str,
        arguments: dict[str, Any] | None,
        pretrained: bool | str,
        preserve: bool,
        compile: str | None,
    ) -> None:
        super().__init__()
        if compile is not None and compile not in COMPILE_MODES:
            raise UserError(
                f"compile {compile!r} is unknown{nearest(compile, COMPILE_MODES)}: name one of "
                f"{', '.join(COMPILE_MODES)}."
            )
        self.name, self.scheme = name, scheme
        self.arguments = arguments or {}
        self.pretrained, self.preserve = pretrained, preserve
        self.compile_mode = compile
        self.told: list[str] = []
        self.card = None
        self.ema: ModelEmaV3 | None = None
        self.signals = Signals()
        self.first_step = 0

    @property
    @abstractmethod
    def peak_rate(self) -> float:
        """The highest learning rate."""

    @abstractmethod
    def create_optimizer(self, *, fused: bool) -> torch.optim.Optimizer:
        """Create the optimiser, with PyTorch's fused kernels or without."""

    @abstractmethod
    def create_schedule(self, optimizer: torch.optim.Optimizer, *, steps: int, epochs: int) -> Any:
        """Create the schedule of its rates, for so many steps and epochs, and set those of the first step."""

    @abstractmethod
    def set_rates(self, schedule: Any) -> None:
        """Set the rates of the step that comes."""

    def settings(self) -> dict[str, Any]:
        """Return what else of the model a training that goes on must share with its beginning; JSON-able."""
        return {}

    def check_start(self) -> None:
        """Refuse what so many processes cannot train together."""

    def set_mode(self) -> None:
        """Put the model into the mode of its training steps."""
        self.model.train()

    def compile_model(self, mode: str) -> None:
        """Compile the model where it stands."""
        self.model.compile(mode=mode)

    def configure_optimizers(self) -> Any:
        clipped = bool(self.trainer.gradient_clip_val)  # Lightning clips no fused optimiser in mixed precision
        optimizer = self.create_optimizer(fused=not clipped)
        steps, epochs = int(self.trainer.estimated_stepping_batches), int(self.trainer.max_epochs or 1)
        self.steps_an_epoch = -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)
        schedule = self.create_schedule(optimizer, steps=steps, epochs=epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.set_rates(scheduler)

    def on_fit_start(self) -> None:
        check_together(self.trainer, step=self.first_step, images=self.images)
        self.check_start()
        if self.device.type == "cpu":
            cheapen_dropout(self.model)
        if self.compile_mode is not None:
            self.compile_model(self.compile_mode)

    def on_train_start(self) -> None:
        self.watch = LossWatch(f"{self.name} under {self.scheme}", self.peak_rate)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        batches = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        seed_step(self.seed, batches, self.global_rank)
        self.set_mode()

    def watch_step(self, loss: Tensor) -> None:
        """Log a step's loss and rate, and end the training in all processes where the loss is no number any more.

        Args:
            loss: Of this process.

        Raises:
            NonFiniteLossError: It is not.
        """
        seen = over_processes(loss, asked_to_stop=bool(self.signals.asked))
        self.watch.note(seen, epoch=self.current_epoch + 1, step=self.global_step + 1)
        if self.watch.is_due or self.trainer.is_last_batch:
            self.watch.check()
        self.log("train/loss", seen[0])
        optimizer: Any = self.optimizers()
        rates = (group["lr"] / group.get("lr_scale", 1.0) for group in optimizer.param_groups)
        self.log("lr", max(rates))  # whatever parts of the model scale it by

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model)

    def on_validation_start(self) -> None:
        share_buffers(self.trainer, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.first_step = int(checkpoint["global_step"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.card is not None
        self.watch.check()  # before it takes the place of the last good one
        self._check_weights(checkpoint["state_dict"])
        checkpoint[CARD] = self.card.as_dict()
        checkpoint[PROCESSES] = self.trainer.world_size

    def _check_weights(self, weights: dict[str, Tensor]) -> None:
        """Raise NonFiniteLossError where the last step made weights that are no numbers, before a loss shows it."""
        for name, weight in weights.items():
            if weight.is_floating_point() and not weight.isfinite().all():
                raise NonFiniteLossError(
                    f"{name} of {self.watch.what} is no number any more after step {self.global_step}: lower the "
                    f"learning rate (it is {self.peak_rate:g})."
                )
