"""The control of MPVG: `pvg` whose Last LN's bias moves twice as fast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from helpers import images, small
from mpvg.errors import UserError
from mpvg.train.optimizer import build_optimizer, build_schedule, set_rates
from mpvg.train.recipe import Recipe, Schedule

VIT_LITE = Schedule(warmup_epochs=2, warmup_lr=1e-6, min_lr=1e-5, cooldown_epochs=2, by="epoch", lead=0)


def named_groups(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(one)]: group for group in optimizer.param_groups for one in group["params"]}


@pytest.mark.parametrize("changes", [{}, {"layer_decay": 0.5}, {"decay_all": True}, {"backbone_lr": 0.1}])
def test_the_bias_has_twice_the_rate_at_every_step_and_all_else_its_own(changes: dict[str, Any]) -> None:
    model = small("pvg")
    found = []
    for factor in (1.0, 2.0):
        recipe = Recipe(lr=1e-3, schedule=VIT_LITE, last_norm_bias_lr=factor, **changes)
        optimizer = build_optimizer(model, recipe)
        schedule = build_schedule(optimizer, recipe.schedule, steps=30, epochs=10, steps_an_epoch=3)
        rates: dict[str, list[float]] = {}
        for step in range(30):
            set_rates(schedule, recipe.schedule, step=step, steps_an_epoch=3)
            for name, group in named_groups(model, optimizer).items():
                rates.setdefault(name, []).append(group["lr"])
        decays = {name: group["weight_decay"] for name, group in named_groups(model, optimizer).items()}
        found.append((rates, decays))
    (plain, decays), (control, control_decays) = found
    assert control_decays == decays
    assert control.pop("norm.bias") == pytest.approx([2 * rate for rate in plain.pop("norm.bias")], rel=1e-12)
    assert control == plain


def test_a_step_of_the_control_moves_the_offset_as_mpvg_does() -> None:
    """Where LN' puts out nothing yet, all three compute the same, and MPVG's two biases add up to the control's one."""
    x, labels, moved = images(4, 2, 16, 16), torch.arange(4), {}
    for name, scheme, factor in (("mpvg", "mpvg", 1.0), ("control", "pvg", 2.0), ("pvg", "pvg", 1.0)):
        model = small("mpvg") if scheme == "mpvg" else small("pvg")
        model.load_state_dict(small("mpvg").state_dict(), strict=False)
        if scheme == "mpvg":
            torch.nn.init.zeros_(model.norm_pos.weight)
            torch.nn.init.zeros_(model.norm_pos.bias)
        before = model.norm.bias.detach().clone()
        recipe = Recipe(opt="momentum", lr=0.1, weight_decay=0.0, last_norm_bias_lr=factor)
        optimizer = build_optimizer(model, recipe)
        build_schedule(optimizer, Schedule(warmup_epochs=0), steps=10, epochs=10, steps_an_epoch=1)
        cross_entropy(model(x), labels).backward()
        optimizer.step()
        moved[name] = model.norm.bias.detach() - before + (model.norm_pos.bias.detach() if scheme == "mpvg" else 0)
    torch.testing.assert_close(moved["control"], moved["mpvg"])
    assert (moved["pvg"] - moved["mpvg"]).abs().max() > 0.1 * moved["mpvg"].abs().max()


def test_without_a_bias_to_speed_up() -> None:
    model = small("pvg", norm_layer="rmsnorm")
    with pytest.raises(UserError, match="needs a bias in the Last LN"):
        build_optimizer(model, Recipe(lr=1e-3, last_norm_bias_lr=2.0))
    with pytest.raises(UserError, match=r"last_norm_bias_lr -2"):
        Recipe(last_norm_bias_lr=-2)
