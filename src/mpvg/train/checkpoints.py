"""Checkpoints of Lightning that are either whole or not there, in a folder that may be moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mpvg.files import write_atomically


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the old file and then replaces it; Lightning's own may copy from another disk on top of it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)

        def write(draft: Path) -> None:
            try:
                with draft.open("wb") as file:
                    torch.save(checkpoint, file)
            except RuntimeError as error:  # of torch, over that of a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise

        write_atomically(Path(path), write)


class BestAndLast(ModelCheckpoint):
    """Lightning's, which also remembers the best score where the folder was moved in the meantime."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def moved(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = {key: moved(value) for key, value in state_dict.items() if key.endswith("_model_path")}
        scores = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath})
