"""AdamW for detectors and segmenters: which parameters decay, and how rates fall with depth."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mpvg.errors import UserError
from mpvg.train.dense_recipe import DenseRecipe, DenseSchedule

_BETAS = (0.9, 0.999)
_NAMES_WITHOUT_DECAY = ("level_embed", "pos_embed", "norm", "bias")
_OF_STEM = re.compile(r"(^|\.)trunk\.(pos_embed|patch_embed)\b")
_OF_BLOCK = re.compile(r"(^|\.)trunk\.blocks\.(\d+)\.")


def build_dense_optimizer(model: nn.Module, recipe: DenseRecipe, *, fused: bool = True) -> torch.optim.Optimizer:
    """Create AdamW.

    Args:
        model: A detector or segmenter, of which the frozen parameters are left out.
        recipe: For rates and decays.
        fused: Take PyTorch's fused kernels.

    Returns:
        The optimiser.

    Raises:
        UserError: Rates are to fall with depth, and no blocks of a trunk were found.
    """
    return torch.optim.AdamW(parameter_groups(model, recipe), lr=recipe.lr, betas=_BETAS, fused=fused)


def parameter_groups(model: nn.Module, recipe: DenseRecipe) -> list[dict[str, Any]]:
    """Return the trained parameters by rate and decay.

    Args:
        model: As for `build_dense_optimizer`.
        recipe: Likewise.

    Returns:
        Groups for an optimiser, with their part of the highest rate as `lr_scale`.

    Raises:
        UserError: As for `build_dense_optimizer`.

    Source:
        mmcv's DefaultOptimizerConstructor with ViT-Adapter's custom_keys (detection), and ViT-Adapter's
        LayerDecayOptimizerConstructor (segmentation).
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    blocks = [block for name, _ in trained if (block := _OF_BLOCK.search(name))]
    depth = max((int(block[2]) + 1 for block in blocks), default=0)
    if recipe.layer_decay is not None and not depth:
        raise UserError(f"layer_decay {recipe.layer_decay} needs the blocks of a ViT-Adapter's trunk: leave it out.")
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in trained:
        scale = 1.0 if recipe.layer_decay is None else recipe.layer_decay ** _layers_above(name, depth)
        decay = recipe.weight_decay if _decays(name, parameter, recipe.no_decay) else 0.0
        new = {"params": [], "lr": recipe.lr * scale, "lr_scale": scale, "weight_decay": decay}
        groups.setdefault((scale, decay), new)["params"].append(parameter)
    return list(groups.values())


def _layers_above(name: str, depth: int) -> int:
    """Return by how many layers adapter and heads are above a parameter's own; the patch embedding is below block 0."""
    if _OF_STEM.search(name):
        return depth + 1
    block = _OF_BLOCK.search(name)
    return depth - int(block[2]) if block else 0


def _decays(name: str, parameter: Tensor, no_decay: str) -> bool:
    if no_decay == "names":
        return not any(word in name for word in _NAMES_WITHOUT_DECAY)
    return parameter.ndim > 1 and not name.endswith(".bias")


def build_dense_schedule(
    optimizer: torch.optim.Optimizer, schedule: DenseSchedule, *, steps: int, steps_an_epoch: int
) -> LambdaLR:
    """Create the schedule and set the rates of the first step.

    Args:
        optimizer: Whose rates it sets.
        schedule: The curve.
        steps: Of the training.
        steps_an_epoch: Of the optimiser.

    Returns:
        PyTorch's schedule, to be stepped once a step.
    """

    def factor(step: int) -> float:
        return schedule.factor(step, steps=steps, steps_an_epoch=steps_an_epoch)

    return LambdaLR(optimizer, factor)
