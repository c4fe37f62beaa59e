"""Checkpoints of Lightning that are either whole or not there."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mpvg.files import write_atomically


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the old file and then replaces it; Lightning's own may copy from another disk on top of it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), content.getvalue())
