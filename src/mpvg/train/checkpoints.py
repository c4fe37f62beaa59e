"""Checkpoints of a training that are either whole or not there, in a folder that may be moved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.console import Console

from mpvg.checkpoint import read_checkpoint
from mpvg.console import say
from mpvg.errors import UserError
from mpvg.files import write_atomically

LAST: Final = "last.ckpt"
PREVIOUS: Final = "previous.ckpt"  # what the last one was before
BEST: Final = "best.ckpt"
PROCESSES: Final = "processes"  # under which a checkpoint holds in how many it was trained


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the old file and then replaces it; Lightning's own may copy from another disk on top of it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)

        def write(draft: Path) -> None:
            try:
                with draft.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())  # or after a power cut the new name may be of a file without its content
            except RuntimeError as error:  # of torch, over that of a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise
            if path.name == LAST and path.exists():
                os.replace(path, path.with_name(PREVIOUS))  # one who is killed now goes on from there

        write_atomically(path, write)


class BestAndLast(ModelCheckpoint):
    """Lightning's, which also remembers the best score where the folder was moved in the meantime."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def moved(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = {key: moved(value) for key, value in state_dict.items() if key.endswith("_model_path")}
        scores = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath})


def to_go_on_from(out: Path, console: Console, *, processes: int, streaming: bool, clears: bool) -> Path | None:
    """Return the newest checkpoint that can be read, and say where in the training it was written.

    Args:
        out: The training's folder.
        console: Where to say so.
        processes: In how many the training goes on.
        streaming: Whether the order of images depends on that number.
        clears: Remove one that cannot be read, or it would take the place of the last good one.

    Returns:
        last.ckpt, or where that is damaged the one before; None where neither exists.

    Raises:
        UserError: There is no checkpoint but damaged ones, or streams would be read in another order.
    """
    damaged: dict[Path, UserError] = {}
    for file in (out / LAST, out / PREVIOUS):
        if not file.is_file():
            continue
        try:
            read_checkpoint(file)
        except UserError as error:
            damaged[file] = error
            continue
        for other, reason in damaged.items():
            say(console, f"{reason} It is left out.")
            if clears:
                other.unlink(missing_ok=True)
        say(console, f"Going on from {file}, {place(file)}.")
        before = _content(file).get(PROCESSES, processes)
        if before != processes and streaming:
            raise UserError(
                f"{file} was trained in {before} processes, by whose number the order of streamed images goes, and not "
                f"in {processes}: go on in {before}, or begin anew in another folder."
            )
        if before != processes:
            say(
                console,
                f"It was trained in {before} processes and goes on in {processes}: the images and their order stay, "
                "but mixup, dropout and drop path draw other numbers.",
            )
        return file
    if damaged:
        names = " and ".join(str(file) for file in damaged)
        raise UserError(f"{' '.join(map(str, damaged.values()))} To begin anew, remove {names}.")
    return None


def kept(out: Path, *, names: tuple[str, ...] = (LAST, BEST)) -> str:
    """Say which checkpoints a folder holds, and where in the training they were written."""
    files = [out / name for name in names if (out / name).is_file()]
    if not files:
        return "No epoch had ended, so nothing was kept."
    return "Kept: " + ", ".join(f"{file} {place(file)}" for file in files) + "."


def place(checkpoint: Path) -> str:
    """Say where in its training a checkpoint was written."""
    content = _content(checkpoint)
    epoch, of_epoch = 1 + int(content["epoch"]), content["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return (
        f"after epoch {epoch}"
        if of_epoch["is_last_batch"]
        else f"in epoch {epoch}, after step {content['global_step']}"
    )


def _content(checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return content
