"""How a training ends that cannot go on, in words."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

from mpvg.errors import NonFiniteLossError, RunError, UserError
from mpvg.files import NO_ROOM
from mpvg.train.checkpoints import BEST, LAST, PREVIOUS, kept
from mpvg.train.stopping import Stopped

_OTHERS_ENDED = re.compile("Connection (closed|reset) by|remote process exited")  # of Gloo and of NCCL


def with_what_was_kept(error: BaseException, trainer: Any, out: Path) -> BaseException:
    """Return a training's error with what was kept of it; where it is that of one process, the others are ended.

    Args:
        error: What ended it.
        trainer: Lightning's.
        out: The training's folder.
    """
    first = trainer.global_rank == 0
    if isinstance(error, Stopped):
        return error
    if isinstance(error, SystemExit):  # which Lightning makes of Ctrl-C
        return KeyboardInterrupt()
    if isinstance(error, NonFiniteLossError):  # at the same step in every process, and the first says it
        if not first:
            return SystemExit(0)
        # The step before may have spoilt the weights already, in the last checkpoint but not in the one before.
        return NonFiniteLossError(f"{error} {kept(out, names=(LAST, PREVIOUS, BEST))}")
    if first and trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)  # they would wait for this one
    words = f" {kept(out)}" if (out / LAST).is_file() else ""
    if isinstance(error, UserError):
        return UserError(f"{error}{words}")
    if isinstance(error, OSError):
        file, reason = error.filename2 or error.filename or "a file", error.strerror or error
        remedy = "make room" if error.errno in NO_ROOM else "mend that"
        return UserError(f"{file} cannot be used ({reason}): {remedy}, and the same command goes on.{words}")
    if trainer.world_size > 1 and _OTHERS_ENDED.search(str(error)):
        return RunError(f"another process of this training ended, and says why itself.{words}")
    return error
