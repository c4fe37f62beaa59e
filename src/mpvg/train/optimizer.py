"""A recipe's optimiser and schedule, both timm's."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler

from mpvg.errors import UserError
from mpvg.train.recipe import Recipe, Schedule

_STOCK = ("patch_embed.", "blocks.")


def build_optimizer(model: Any, recipe: Recipe, *, fused: bool = True) -> torch.optim.Optimizer:
    """Create the optimiser, with the decays that timm's rules and the model's own give each parameter.

    Args:
        model: The model, of which the frozen parameters are left out.
        recipe: For optimiser, learning rate, and the decay of weights and of rates with depth.
        fused: Take PyTorch's fused kernels where the optimiser has them.

    Returns:
        The optimiser.
    """
    options = {"fused": True} if fused and recipe.opt in ("adam", "adamw") else {}
    optimizer = create_optimizer_v2(
        model if recipe.backbone_lr is None else _two_rates(model, recipe),
        opt=recipe.opt,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        filter_bias_and_bn=not recipe.decay_all,
        **options,
    )
    if recipe.last_norm_bias_lr != 1:
        _scale_rate(optimizer, _last_norm_bias(model), recipe.last_norm_bias_lr)
    return optimizer


def _last_norm_bias(model: Any) -> torch.Tensor:
    bias = getattr(model.norm, "bias", None)
    if bias is None or not bias.requires_grad:
        raise UserError("last_norm_bias_lr needs a bias in the Last LN that is trained: leave it out.")
    return bias


def _scale_rate(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, factor: float) -> None:
    """Give a parameter a group of its own, whose rate is always the factor times that of the group it leaves."""
    for group in optimizer.param_groups:
        others = [one for one in group["params"] if one is not parameter]
        if len(others) < len(group["params"]):
            own = {**group, "params": [parameter], "lr_scale": factor * group.get("lr_scale", 1.0)}
            group["params"] = others
            optimizer.add_param_group(own)
            return


def _two_rates(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the groups of a fine-tuning, whose classifier has a rate of its own."""
    assert recipe.lr is not None
    assert recipe.backbone_lr is not None
    trained = {id(one): name for name, one in model.named_parameters() if one.requires_grad}
    of_head = {id(one) for one in model.get_classifier().parameters()}
    by_decay: list[Any]
    if recipe.decay_all:
        by_decay = [{"params": list(model.parameters()), "weight_decay": recipe.weight_decay}]
    else:
        by_decay = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=model.no_weight_decay())
    groups = []
    for group in by_decay:
        parameters = [one for one in group["params"] if id(one) in trained]
        head = [one for one in parameters if id(one) in of_head]
        backbone = [one for one in parameters if id(one) not in of_head]
        if recipe.stock_groups:
            if not any(name.startswith("blocks.") for name in trained.values()):
                raise UserError(
                    "stock_groups true is for models whose blocks lie in `blocks`, such as T2T-ViT: leave it out."
                )
            backbone = [one for one in backbone if trained[id(one)].startswith(_STOCK)]
        for part, lr in ((backbone, recipe.lr * recipe.backbone_lr), (head, recipe.lr)):
            if part:
                groups.append({**group, "params": part, "lr": lr})
    return groups


def build_schedule(
    optimizer: torch.optim.Optimizer, schedule: Schedule, *, steps: int, epochs: int, steps_an_epoch: int
) -> CosineLRScheduler:
    """Create the schedule and set the rates of the first step; before step s (from 0) call `set_rates`.

    Args:
        optimizer: Whose rates it sets.
        schedule: The curve.
        steps: Steps in all; a curve that counts steps ends with them.
        epochs: Epochs in all; one that counts epochs ends with these.
        steps_an_epoch: Steps of an epoch.

    Returns:
        timm's schedule, which counts steps or epochs, as the curve asks.
    """
    an_epoch = steps_an_epoch if schedule.by == "step" else 1
    total = steps if schedule.by == "step" else epochs
    warmup = round(total / 10 if schedule.warmup_epochs is None else schedule.warmup_epochs * an_epoch)
    cosine = total - round(schedule.cooldown_epochs * an_epoch) - (warmup if schedule.warmup_prefix else 0)
    found = CosineLRScheduler(
        optimizer,
        t_initial=max(cosine, 2),  # of one step alone timm warns, and the rate would be zero
        lr_min=schedule.min_lr,
        warmup_t=warmup,
        warmup_lr_init=schedule.warmup_lr,
        warmup_prefix=schedule.warmup_prefix,
        t_in_epochs=False,
    )
    set_rates(found, schedule, step=0, steps_an_epoch=steps_an_epoch)
    return found


def set_rates(built: CosineLRScheduler, schedule: Schedule, *, step: int, steps_an_epoch: int) -> None:
    """Set the rates of a step.

    Args:
        built: timm's schedule.
        schedule: The curve that it was built for.
        step: The step, from 0.
        steps_an_epoch: Steps of an epoch.
    """
    built.step_update(schedule.time(step, steps_an_epoch))
