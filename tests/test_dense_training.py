"""How detectors and segmenters are trained: rates and decays by the formulas of mmcv, and trainings end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import nn

import mpvg
from mpvg.dense.card import DenseCard
from mpvg.dense.predictor import Segmenter
from mpvg.errors import NonFiniteLossError, UserError
from mpvg.train.checkpoints import WholeCheckpoints
from mpvg.train.dense_data import DetectionData, SegmentationData
from mpvg.train.dense_modules import ObjectDetection, SemanticSegmentation
from mpvg.train.dense_optimizer import build_dense_optimizer, build_dense_schedule, parameter_groups
from mpvg.train.dense_recipe import OF_DETECTION, OF_SEGMENTATION, DenseRecipe, DenseSchedule
from mpvg.weight_files import CARD


def mmcv_rate(base: float, i: int, *, per_epoch: int, total: int, of_steps: bool, warmup: int, ratio: float) -> float:
    """Return the rate of iteration i (from 0) as mmcv's hooks compute it, written anew from their formulas."""
    if of_steps:
        epoch, gamma, drops = i // per_epoch, 0.1, 0
        for j, milestone in enumerate([27, 33]):
            drops = j + 1 if epoch >= milestone else drops
        regular = base * gamma**drops
    else:
        power, least = 1.0, 0.0
        regular = (base - least) * (1 - i / total) ** power + least
    if i < warmup:
        k = (1 - i / warmup) * (1 - ratio)
        return regular * (1 - k)
    return regular


@pytest.mark.parametrize(("recipe", "of_steps"), [(OF_DETECTION, True), (OF_SEGMENTATION, False)])
def test_rates_are_those_of_mmcv(recipe: DenseRecipe, of_steps: bool) -> None:
    per_epoch, total = (700, 36 * 700) if of_steps else (2526, 160_000)
    warmup, ratio = (500, 0.001) if of_steps else (1500, 1e-6)
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    groups = [{"params": [parameters[0]], "lr": recipe.lr}, {"params": [parameters[1]], "lr": recipe.lr / 2}]
    optimizer = torch.optim.SGD(groups, lr=recipe.lr)
    schedule = build_dense_schedule(optimizer, recipe.schedule, steps=total, steps_an_epoch=per_epoch)
    looked_at = {0, 1, 499, 500, 501, 1499, 1500, 27 * 700 - 1, 27 * 700, 33 * 700 - 1, 33 * 700, total - 1}
    for i in range(max(looked_at) + 1 if of_steps else 1502):
        if i in looked_at:
            for group, part in zip(optimizer.param_groups, (1, 2), strict=True):
                expected = mmcv_rate(
                    recipe.lr / part, i, per_epoch=per_epoch, total=total, of_steps=of_steps, warmup=warmup, ratio=ratio
                )
                assert group["lr"] == pytest.approx(expected, rel=1e-9), i
        optimizer.step()
        schedule.step()
    for i in (100_000, total - 1):
        expected = mmcv_rate(
            recipe.lr, i, per_epoch=per_epoch, total=total, of_steps=of_steps, warmup=warmup, ratio=ratio
        )
        found = recipe.lr * recipe.schedule.factor(i, steps=total, steps_an_epoch=per_epoch)
        assert found == pytest.approx(expected, rel=1e-9)


def test_a_cosine_ends_at_zero() -> None:
    schedule = DenseSchedule(curve="cosine", warmup_steps=0)
    factors = [schedule.factor(step, steps=10, steps_an_epoch=5) for step in (0, 5, 10)]
    assert factors == pytest.approx([1, 0.5, 0])


class Trunk(nn.Module):
    """A trunk of twelve blocks with what the rules tell apart, under the names of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 2))
        self.patch_embed = nn.Sequential(nn.Conv2d(3, 2, 1))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm_pos": nn.LayerNorm(2), "attn": nn.Linear(2, 2)}) for _ in range(12)
        )


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.trunk = Trunk()
        self.backbone.level_embed = nn.Parameter(torch.zeros(3, 2))
        self.backbone.interactions = nn.ModuleList([nn.Linear(2, 2)])
        self.backbone.spatial_prior = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 2)


def groups_by_name(recipe: DenseRecipe) -> dict[str, tuple[float, float]]:
    model = Model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, recipe)
    found = {names[id(one)]: (group["lr"], group["weight_decay"]) for group in groups for one in group["params"]}
    assert set(found) == set(names.values())
    return found


def test_groups_of_detection() -> None:
    """One rate; by name, what has level_embed, pos_embed, norm or bias in it does not decay."""
    found = groups_by_name(OF_DETECTION)
    assert {rate for rate, _ in found.values()} == {1e-4}
    without = {name for name, (_, decay) in found.items() if decay == 0}
    blocks = {f"backbone.trunk.blocks.{i}.{name}" for i in range(12) for name in ("norm_pos.weight", "norm_pos.bias")}
    assert without == blocks | {f"backbone.trunk.blocks.{i}.attn.bias" for i in range(12)} | {
        "backbone.trunk.pos_embed", "backbone.trunk.patch_embed.0.bias", "backbone.level_embed",
        "backbone.interactions.0.bias", "backbone.spatial_prior.1.bias", "head.bias",
    }  # fmt: skip
    assert {decay for name, (_, decay) in found.items() if name not in without} == {0.05}


def test_groups_of_segmentation() -> None:
    """Rates fall by 0.95 a layer, the position table decays, vectors do not; a block's norm_pos goes with the block."""
    found = groups_by_name(OF_SEGMENTATION)
    base = 1.2e-4
    for i in range(12):
        for name, decay in (("norm_pos.weight", 0), ("norm_pos.bias", 0), ("attn.weight", 0.01), ("attn.bias", 0)):
            expected = pytest.approx((base * 0.95 ** (12 - i), decay))
            assert found[f"backbone.trunk.blocks.{i}.{name}"] == expected
    others = {
        "backbone.trunk.pos_embed": (13, 0.01), "backbone.trunk.patch_embed.0.weight": (13, 0.01),
        "backbone.trunk.patch_embed.0.bias": (13, 0), "backbone.level_embed": (0, 0.01),
        "backbone.interactions.0.weight": (0, 0.01), "backbone.interactions.0.bias": (0, 0),
        "backbone.spatial_prior.0.weight": (0, 0.01), "backbone.spatial_prior.1.weight": (0, 0),
        "backbone.spatial_prior.1.bias": (0, 0), "head.weight": (0, 0.01), "head.bias": (0, 0),
    }  # fmt: skip
    for name, (layers, decay) in others.items():
        assert found[name] == pytest.approx((base * 0.95**layers, decay)), name
    assert len(found) == 48 + len(others)


def test_what_is_frozen_is_left_out() -> None:
    model = Model()
    trunk = model.backbone.get_submodule("trunk").requires_grad_(False)
    optimizer = build_dense_optimizer(model, OF_DETECTION)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    trained = {id(one) for group in optimizer.param_groups for one in group["params"]}
    assert not trained & {id(one) for one in trunk.parameters()}


def test_rates_by_depth_need_a_trunk() -> None:
    with pytest.raises(UserError, match=r"layer_decay 0\.95 needs the blocks"):
        parameter_groups(nn.Linear(2, 2), OF_SEGMENTATION)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"lr": 0.0}, "lr 0.0: name a number above 0."),
        ({"weight_decay": -1.0}, "weight_decay -1.0: name a number from 0."),
        ({"layer_decay": 1.5}, "layer_decay 1.5: name a number above 0 and up to 1."),
        ({"no_decay": "name"}, "no_decay 'name' is unknown (did you mean 'names'?): name one of names, vectors."),
    ],
)
def test_bad_recipes_are_told_in_one_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        DenseRecipe(**given)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"curve": "ploy"}, "curve 'ploy' is unknown (did you mean 'poly'?): name one of steps, poly, cosine."),
        ({"milestones": (0, 3)}, "milestones [0, 3]: name epochs, 1 or more."),
        ({"warmup_steps": -1}, "warmup_steps -1: name a number from 0."),
        ({"warmup_factor": 2.0}, "warmup_factor 2.0: name a part from 0 to 1."),
    ],
)
def test_bad_schedules_are_told_in_one_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        DenseSchedule(**given)
    assert str(caught.value) == told


TINY = {"embed_dim": 24, "depth": 4, "num_heads": 2, "deform_heads": 2, "prior_width": 8, "img_size": 64}
SHORT = DenseSchedule(curve="cosine", warmup_steps=2)


def detection(**options: Any) -> ObjectDetection:
    few = {"anchors": 32, "rois": 8, "candidates": (40, 20), "proposals": (20, 10), "detections": 4}
    head = {**few, "width": 16, "hidden": 32}
    return ObjectDetection(
        arguments={**TINY, "window_size": 4}, head=head, recipe=DenseRecipe(lr=1e-3, schedule=SHORT), **options
    )


def segmentation(**options: Any) -> SemanticSegmentation:
    recipe = DenseRecipe(lr=1e-3, no_decay="vectors", layer_decay=0.9, schedule=SHORT)
    head = {"channels": 16, "auxiliary_channels": 8}
    return SemanticSegmentation(**{"arguments": TINY, "head": head, "window": (64, 48), "recipe": recipe, **options})


def objects(**options: Any) -> DetectionData:
    return DetectionData(**{"scales": [64], "max_long": 96, "crop": False, "eval_scale": 64, "workers": 0, **options})


def class_maps(**options: Any) -> SegmentationData:
    return SegmentationData(**{"scale": 64, "crop_size": 64, "workers": 0, **options})


def trainer_of(*callbacks: Any, **settings: Any) -> lightning.Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return lightning.Trainer(
        **{"max_epochs": 2, "accelerator": "cpu", "num_sanity_val_steps": 0, **quiet, **settings},
        callbacks=list(callbacks),
        plugins=[WholeCheckpoints()],
    )


def test_a_detector_is_trained_and_measured(tmp_path: Path) -> None:
    model, data = detection(), objects(limit=4)
    model.build_for(data, seed=0)
    trainer = trainer_of(max_epochs=1)
    trainer.fit(model, datamodule=data)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    parts = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
    assert found["train/loss"] == pytest.approx(sum(found[f"train/{part}"] for part in parts), rel=1e-5)
    assert {"val/box_ap", "val/mask_ap", "val/box_ap50", "val/mask_ap50", "lr"} <= set(found)
    assert 0 <= found[model.watched] <= 1
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    card = DenseCard.from_dict(content[CARD])
    assert (card.task, card.classes, card.category_ids) == ("detection", data.images.classes, data.images.category_ids)  # type: ignore[union-attr]
    again = detection()
    again.take(card, _loaded(card, content), data)
    (tested,) = trainer_of().test(again, datamodule=data, verbose=False)
    assert tested["test/box_ap"] == pytest.approx(found["val/box_ap"])


def test_a_detector_finds_what_is_there() -> None:
    """A model that tells the annotations has an average precision of 1: sizes, ids and labels are handed on rightly."""

    class Knowing(nn.Module):
        def detect(self, images: Any, sizes: Any) -> list[dict[str, torch.Tensor]]:
            return [next(truths) for _ in images]

    model, data = detection(), objects()
    model.build_for(data, seed=0)

    def told() -> Any:
        for index in range(len(data.val)):
            known = data.val.sample(index)[1]
            masks = torch.from_numpy(known.masks)[:, None].float() * 0.9
            boxes, labels = torch.from_numpy(known.boxes).float(), torch.from_numpy(known.labels)
            yield {"boxes": boxes, "labels": labels, "scores": torch.ones(len(labels)), "masks": masks}

    truths = told()
    model.model = Knowing()
    (found,) = trainer_of().validate(model, datamodule=data, verbose=False)
    assert found["val/box_ap"] == pytest.approx(1)
    assert found["val/mask_ap"] == pytest.approx(1)


@pytest.mark.parametrize("window", ["slide", "whole"])
def test_a_segmenter_is_trained_and_measured(window: str) -> None:
    model, data = segmentation(evaluates=window), class_maps()
    model.build_for(data, seed=0)
    trainer = trainer_of(max_epochs=1)
    trainer.fit(model, datamodule=data)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert found["train/loss"] == pytest.approx(found["train/loss_decode"] + found["train/loss_aux"], rel=1e-5)
    assert 0 <= found[model.watched] <= 1
    assert model.card is not None
    right = total = 0
    predictor = Segmenter(model.card, model.model.eval())
    for index in range(len(data.val)):
        image, labels = data.val.sample(index)
        named, counted = predictor.segment(np.asarray(image)).labels, labels != 255
        right, total = right + int((named == labels)[counted].sum()), total + int(counted.sum())
    assert found["val/pixel_accuracy"] == pytest.approx(right / total, abs=1e-6)


class Saves(lightning.Callback):
    """Writes a checkpoint in the middle of an epoch."""

    def __init__(self, file: Path, step: int) -> None:
        self.file, self.step = file, step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_training_goes_on_as_it_would_have(task: str, tmp_path: Path) -> None:
    """From a checkpoint in the middle of an epoch: the same weights, bit for bit."""

    def begun() -> tuple[Any, Any]:
        model = detection() if task == "detection" else segmentation()
        data: Any = objects(limit=6) if task == "detection" else class_maps()
        model.build_for(data, seed=3)
        return model, data

    short = {"max_epochs": 1, "limit_val_batches": 1}
    whole, data = begun()
    trainer_of(Saves(tmp_path / "middle.ckpt", 1), **short).fit(whole, datamodule=data)
    other, data = begun()
    trainer_of(**short).fit(other, datamodule=data, ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    content = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    assert not content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]


def test_a_lost_loss_ends_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = segmentation(), class_maps()
    model.build_for(data, seed=0)
    losses = model.model.losses
    monkeypatch.setattr(
        model.model, "losses", lambda *given: {name: part * float("nan") for name, part in losses(*given).items()}
    )
    told = r"the loss of mpvg_vit_adapter_tiny_patch16 under mpvg is nan at epoch 1, step 1: lower the learning rate"
    with pytest.raises(NonFiniteLossError, match=told):
        trainer_of().fit(model, datamodule=data)


def test_lost_weights_of_a_detector_are_told_by_its_loss() -> None:
    """Boxes that are no numbers are left out, and nothing else breaks before the loss is looked at."""
    model, data = detection(), objects(limit=2)
    model.build_for(data, seed=0)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="is nan at epoch 1, step 1"):
        trainer_of(max_epochs=1).fit(model, datamodule=data)
    assert len(model.model.eval()(next(iter(data.val_dataloader())).images)[0]["boxes"]) == 0


def test_a_trunk_starts_from_a_classification_model(tmp_path: Path) -> None:
    source = mpvg.create_model("mpvg_deit_tiny_patch16_224", scheme="mpvg", embed_dim=24, depth=4, num_heads=2)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = segmentation(pretrained=str(tmp_path / "weights.pth"))
    model.build_for(class_maps(), seed=0)
    trunk = model.model.backbone.trunk
    assert torch.equal(trunk.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)
    assert trunk.pos_embed.shape[1] == 16
    assert any("Last LN" in told for told in model.told)
    assert model.card is not None
    assert model.card.build().load_state_dict(model.model.state_dict())


def test_one_image_a_step_is_too_few_for_upernet() -> None:
    model, data = segmentation(), class_maps(batch_size=1)
    model.build_for(data, seed=0)
    with pytest.raises(UserError, match=r"one image a step in each process: .* --data\.batch_size 2"):
        trainer_of().fit(model, datamodule=data)


def test_a_checkpoint_is_tested_on_its_classes(tmp_path: Path) -> None:
    model = segmentation()
    model.build_for(class_maps(), seed=0)
    assert model.card is not None
    other = replace(model.card, classes=("x", "y"))
    with pytest.raises(UserError, match=r"Generated.* has 2 classes|generated has 2 classes"):
        segmentation().take(other, model.model, class_maps())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "mpvg_vit_nano"}, "model 'mpvg_vit_nano' gives no four maps"),
        ({"scheme": "mpgv"}, "mpgv"),
        ({"head": {"chanels": 3}}, r"head\.chanels is unknown .did you mean 'channels'"),
        ({"evaluates": "all"}, "evaluates 'all' is unknown: name slide or whole"),
        ({"window": (64, 65)}, r"window \[64, 65\]: name a side"),
        ({"compile": "fast"}, "compile 'fast' is unknown"),
    ],
)
def test_bad_options_are_told_in_one_line(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        segmentation(**given)


def _loaded(card: DenseCard, content: dict[str, Any]) -> nn.Module:
    model = card.build()
    weights = content["state_dict"]
    model.load_state_dict({name.removeprefix("model."): weights[name] for name in weights if name.startswith("model.")})
    return model.eval()
