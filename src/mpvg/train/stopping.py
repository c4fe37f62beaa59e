"""A training that is asked to end by a signal, as schedulers of clusters do: it ends between two steps, and goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from mpvg.train.checkpoints import BestAndLast

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # the second is what SLURM is usually told to warn with
_OF_SEVERAL = ("LOCAL_RANK", "RANK", "SLURM_PROCID")  # a process that has one of these may have others beside it


class Stopped(BaseException):
    """A signal ended a command; its message says where it goes on. As with Ctrl-C, no `except Exception` is meant."""


class Signals:
    """Whether SIGTERM or SIGUSR1 came: at once it ends what can be begun anew, and a training between two steps.

    Attributes:
        asked: The name of the signal that came, or "".
    """

    def __init__(self) -> None:
        self.asked = ""
        self._waits = any(name in os.environ for name in _OF_SEVERAL)  # one that ended alone would leave others waiting

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take the signals that nobody else has taken, for a time; threads beside the main one may take none."""
        free = threading.current_thread() is threading.main_thread()
        taken = [number for number in _SIGNALS if free and signal.getsignal(number) == signal.SIG_DFL]
        for number in taken:
            signal.signal(number, self._handle)
        listen()
        try:
            yield
        finally:
            for number in taken:
                signal.signal(number, signal.SIG_DFL)

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Note signals for a time, for who asks between two steps, and end nothing.

        They are held back until `listen`: processes that are begun before then hold theirs back too, until they handle
        them, and are not ended by one that comes earlier.
        """
        before, self._waits = self._waits, True
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            yield
        finally:
            listen()
            self._waits = before or bool(self.asked)

    def check(self) -> None:
        """Raise Stopped where a signal came."""
        if self.asked:
            raise Stopped(f"Stopped by {self.asked}; what was finished is kept, and the same command goes on.")

    def _handle(self, number: int, frame: Any) -> None:
        self.asked = signal.Signals(number).name
        if not self._waits:
            self._waits = True  # a second signal does not disturb the clearing up
            self.check()


def listen() -> None:
    """Let signals come, those that were held back first."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


class BetweenSteps(Callback):
    """Writes last.ckpt between two steps: every so many of them, and where a signal ends the training.

    Args:
        file: The checkpoint.
        every: Steps between two checkpoints; None writes those of signals alone.
        signals: Those that came to this process. What other processes were told comes with the loss.
    """

    def __init__(self, file: Path, *, every: int | None, signals: Signals) -> None:
        self.file, self.every, self.signals = file, every, signals
        self.due = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        listen()  # all processes have begun
        # Lightning's own tells the other processes within the handler, which can come in the middle of a reduction
        trainer._signal_connector = _Unregistered(trainer)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._is_asked(trainer, pl_module):
            epoch = trainer.current_epoch
            place = f"after epoch {epoch}" if epoch else "before the first step"
            self._stop(place, kept=epoch > 0 and _keeps(trainer))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if loop._should_accumulate():  # gradients are in no checkpoint
            return
        self.due = self.due or (self.every is not None and trainer.global_step % self.every == 0)
        if trainer.is_last_batch or loop._should_check_val_fx(fetcher):
            return  # Lightning would go on behind this validation; at the end of an epoch another checkpoint is written
        asked = self._is_asked(trainer, pl_module)
        kept = _keeps(trainer)
        if kept and (self.due or asked):
            trainer.save_checkpoint(self.file)
            self.due = False
        if asked:
            self._stop(f"in epoch {trainer.current_epoch + 1}, after step {trainer.global_step}", kept=kept)

    def _is_asked(self, trainer: lightning.Trainer, pl_module: Any) -> bool:
        return pl_module.watch.asked_to_stop or (trainer.world_size == 1 and bool(self.signals.asked))

    def _stop(self, place: str, *, kept: bool) -> None:
        holds = f"; {self.file} holds it. The same command goes on" if kept else ". The same command begins anew"
        raise Stopped(f"Stopped by {self.signals.asked or 'a signal to another process'} {place}{holds}.")


def _keeps(trainer: lightning.Trainer) -> bool:
    return any(isinstance(callback, BestAndLast) for callback in trainer.checkpoint_callbacks)


class _Unregistered(_SignalConnector):
    def register_signal_handlers(self) -> None:
        """Leave the signals to `Signals`."""
