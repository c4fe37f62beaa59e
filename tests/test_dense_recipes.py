"""The recipes of detection and segmentation against the table: what is built of them, and that a change is noticed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import nn

from mpvg.blocks import Block
from mpvg.dense.card import DenseCard
from mpvg.models.mpvg_vit_adapter import WindowBlock
from mpvg.train.dense_optimizer import parameter_groups
from mpvg.train.dense_recipe import DenseRecipe, DenseSchedule
from mpvg.train.tasks import task_called
from recipes import ADE20K, COCO, FOLDER, read
from test_dense_training import mmcv_rate
from test_recipes import changed, leaves

PAPER = {
    COCO: {"Default": "45.9 / 41.0", "LaPE": "46.2 / 41.2", "PVG": "46.1 / 41.2", "MPVG": "46.5 / 41.4"},
    ADE20K: {"Default": "40.55", "LaPE": "41.42", "PVG": "41.07", "MPVG": "41.69"},
}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # 123.675, 116.28, 103.53 and 58.395, 57.12, 57.375 of 255


def built(config: dict[str, Any]) -> tuple[Any, Any]:
    """Return the model and the data that a recipe asks for; images are generated ones."""
    settings, of_data = copy.deepcopy(config["model"]), copy.deepcopy(config["data"])
    of_recipe = settings.pop("recipe")
    of_schedule = of_recipe.pop("schedule")
    if "milestones" in of_schedule:
        of_schedule["milestones"] = tuple(of_schedule["milestones"])
    recipe = DenseRecipe(**of_recipe, schedule=DenseSchedule(**of_schedule))
    task = task_called(config["task"], command="fit")
    kinds: Any = (task.model, task.data)
    model, data = kinds[0](**settings, recipe=recipe), kinds[1](**{**of_data, "source": "generated", "workers": 0})
    model.build_for(data, seed=0)
    return model, data


def groups_of(model: Any) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.model.named_parameters()}
    groups = parameter_groups(model.model, model.recipe)
    return {names[id(one)]: (group["lr"], group["weight_decay"]) for group in groups for one in group["params"]}


def drop_paths(trunk: Any) -> list[float]:
    return [getattr(block.drop_path1, "drop_prob", 0.0) for block in trunk.blocks]


def check_names(config: dict[str, Any]) -> None:
    settings = config["model"]
    assert (settings["name"], settings["scheme"]) == ("mpvg_vit_adapter_tiny_patch16", "mpvg")
    assert config["seed_everything"] == 0


def check_coco(config: dict[str, Any]) -> None:
    check_names(config)
    model, data = built(config)
    trunk = model.model.backbone.body.trunk
    assert [type(block) for block in trunk.blocks] == [WindowBlock, WindowBlock, Block] * 4
    assert {block.window_size for block in trunk.blocks if isinstance(block, WindowBlock)} == {14}
    assert drop_paths(trunk) == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert model.model.backbone.body.vit_maps == "last"
    for name, (rate, decay) in groups_of(model).items():
        free = any(word in name for word in ("level_embed", "pos_embed", "norm", "bias"))
        assert (rate, decay) == (1e-4, 0.0 if free else 0.05), name
    per_epoch, total = 117_266 // 8, 36 * (117_266 // 8)
    drops = [epoch * per_epoch - before for epoch in (27, 33) for before in (1, 0)]
    for i in (0, 1, 250, 499, 500, *drops, total - 1):
        expected = mmcv_rate(1, i, per_epoch=per_epoch, total=total, of_steps=True, warmup=500, ratio=0.001)
        assert model.recipe.schedule.factor(i, steps=total, steps_an_epoch=per_epoch) == pytest.approx(expected)
    assert (data.batch_size, config["trainer"]["max_epochs"], config["trainer"]["precision"]) == (8, 36, "32-true")
    drawn, seen = data.train_transform(), data.eval_transform()
    assert (drawn.scales, drawn.max_long, drawn.crop) == (tuple(range(480, 801, 32)), 1333, True)
    assert (seen.scale, seen.max_long, data.keeps_empty) == (800, 1333, False)
    heads = model.model.roi_heads
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    rpn = model.model.rpn
    assert (rpn.training, rpn.pre_nms_top_n(), rpn.post_nms_top_n(), rpn.nms_thresh) == (True, 2000, 1000, 0.7)
    rpn.eval()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (1000, 1000)
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert (tuple(model.model.transform.image_mean), tuple(model.model.transform.image_std)) == IMAGENET


def check_ade20k(config: dict[str, Any]) -> None:
    check_names(config)
    model, data = built(config)
    trunk = model.model.backbone.trunk
    assert {type(block) for block in trunk.blocks} == {Block}
    assert drop_paths(trunk) == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert model.model.backbone.vit_maps == "each"
    depths = {f"backbone.trunk.blocks.{i}.": 12 - i for i in range(12)}
    depths |= {"backbone.trunk.patch_embed.": 13, "backbone.trunk.pos_embed": 13}
    modules = dict(model.model.named_parameters())
    for name, found in groups_of(model).items():
        above = next((depth for start, depth in depths.items() if name.startswith(start)), 0)
        decay = 0.01 if modules[name].ndim > 1 else 0.0
        assert found == pytest.approx((1.2e-4 * 0.95**above, decay)), name
    per_epoch, total = 20_210 // 8, config["trainer"]["max_steps"]
    assert total == 160_000
    assert per_epoch * config["trainer"]["max_epochs"] >= total  # or the training ends before
    for i in (0, 1, 750, 1499, 1500, 80_000, total - 1):
        expected = mmcv_rate(1, i, per_epoch=per_epoch, total=total, of_steps=False, warmup=1500, ratio=1e-6)
        assert model.recipe.schedule.factor(i, steps=total, steps_an_epoch=per_epoch) == pytest.approx(expected)
    trainer = config["trainer"]
    assert (trainer["max_epochs"], trainer["check_val_every_n_epoch"], trainer["precision"]) == (64, 6, "16-mixed")
    assert data.batch_size == 8
    drawn, seen = data.train_transform(), data.eval_transform()
    assert (drawn.scale, drawn.ratio_range, drawn.crop_size, seen.scale) == (512, (0.5, 2.0), 512, 512)
    card: DenseCard = model.card
    assert (card.evaluation["window"], card.mean, card.std) == ((512, 341), *IMAGENET)
    assert model.model.auxiliary_weight == 0.4
    dropouts = [module.p for module in model.model.modules() if isinstance(module, nn.Dropout2d)]
    assert dropouts == [0.1, 0.1]


CHECKS = {COCO: check_coco, ADE20K: check_ade20k}


@pytest.mark.parametrize("name", CHECKS)
def test_a_recipe_builds_what_the_table_says(name: str) -> None:
    CHECKS[name](read(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_a_changed_value_is_noticed(name: str) -> None:
    config = read(name)
    for path in leaves(config):
        if path in {("data", "source"), ("data", "workers")}:
            continue
        other = copy.deepcopy(config)
        place = other
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = changed(place[path[-1]])
        try:
            CHECKS[name](other)
        except (AssertionError, TypeError, ValueError):
            continue
        pytest.fail(f"{'.'.join(path)} may change and nothing is noticed")


@pytest.mark.parametrize("name", CHECKS)
def test_the_header(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    assert f"#   mpvg fit --config recipes/{name}.yaml --data DIR" in text
    header = {line[2:].split(":")[0].strip(): line for line in text.splitlines() if line.startswith("# ")}
    assert {"Scheme", "Hardware", "Time", "Paper", "Ours", "Debug"} <= header.keys()
    assert all(f"{scheme} {figure}" in header["Paper"] for scheme, figure in PAPER[name].items())
