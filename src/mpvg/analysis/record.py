"""Recording a model's tokens where positions meet them, in one pass and without a second delivery."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpvg.analysis.measures import correlation


@torch.inference_mode()
def correlation_by_block(model: Any, images: Tensor) -> dict[int, float | None]:
    """Return the correlation of normalised tokens and delivered position at each block that receives one.

    Args:
        model: A layer-wise model, in eval mode.
        images: Images (B, C, H, W) it has not been trained on.

    Returns:
        Pearson's correlation of mean_B LN_l(x_l) and d_l over patch tokens by block number l; empty where the scheme
        delivers nothing.

    Source:
        MPVG, figure 4.
    """
    means: dict[int, Tensor] = {}

    def keep_mean(block: int) -> Any:
        return lambda module, args, output: means.__setitem__(block, output.mean(dim=0))

    blocks = model.all_blocks()
    delivered = {i: table for i, table in enumerate(model.positions().blocks[: len(blocks)]) if table is not None}
    hooks = [blocks[block].norm1.register_forward_hook(keep_mean(block)) for block in delivered]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    class_row = int(model.has_class_row)
    return {
        block: correlation(means[block][model.num_prefix_tokens :], table[0, class_row:])
        for block, table in delivered.items()
    }
