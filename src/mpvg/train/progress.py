"""How a training is watched: one bar for all of it in a terminal, a line an epoch elsewhere; and how long it took."""

from __future__ import annotations

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, ProgressBar
from rich.console import Console

from mpvg.console import progress_bar, say

_SECONDS = 0.5  # between two looks at the loss


class TrainingProgress(ProgressBar):
    """Steps, images a second, learning rate, loss, validation score and the time left."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = console or Console()
        self.shown = True
        self.bar = progress_bar(self.console, "steps")

    def disable(self) -> None:
        self.shown = False

    def enable(self) -> None:
        self.shown = True

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.started, self.batches, self.validated = time.monotonic(), 0, False
        self.watched = str(pl_module.watched)
        self.told = self.started - _SECONDS
        if self.shown:
            total = int(trainer.estimated_stepping_batches)
            self.task = self.bar.add_task("training", total=total, completed=trainer.global_step)
            self.bar.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batches += 1
        now = time.monotonic()
        if self.shown and not self.bar.disable and now - self.told > _SECONDS:  # to read the loss waits for the step
            self.told = now
            self.bar.update(self.task, completed=trainer.global_step, description=self._state(trainer))

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.shown:
            score = trainer.callback_metrics[self.watched] if self.validated else None
            validated = ""
            if score is not None:
                measured = 0 <= score < float("inf")  # of detection and segmentation there may be nothing to measure
                validated = f", validation {100 * score:.2f} %" if measured else ", nothing to validate on"
            say(self.bar.console, self._state(trainer) + validated)
        self.validated = False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.validated = True

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()

    def _state(self, trainer: lightning.Trainer) -> str:
        seen = trainer.callback_metrics
        batches: Any = trainer.train_dataloader
        rate = self.batches * batches.batch_size / (time.monotonic() - self.started)
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        return f"{epoch}, loss {seen['train/loss']:.3f}, lr {seen['lr']:.1e}, {rate:,.0f} images/s"


class Stopwatch(Callback):
    """Seconds of a training, its interruptions left out; checkpoints hold them."""

    def __init__(self) -> None:
        self.before = 0.0  # of the sessions before this one

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.started = time.monotonic()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.before + time.monotonic() - self.started}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.before = state_dict["seconds"]
