"""Recording: what it keeps is what the model does, in one pass, for every family, scheme and fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from families import FAMILIES, SWIN, VIT, Family, build, inputs
from helpers import images, perturb, small
from mpvg import fold
from mpvg.analysis.map_statistics import MapStatistics
from mpvg.analysis.measures import correlation, variance_share
from mpvg.analysis.record import (
    NonFiniteActivationsError,
    Recorder,
    check_plain,
    correlation_by_block,
)


def record(model: Any, x: Tensor, *, batch: int = 2, **options: Any) -> Recorder:
    with Recorder(model, **options) as recorder:
        for part in x.split(batch):
            recorder.run(part)
    return recorder


def tokens_at(model: Any, x: Tensor, norm: Any) -> Tensor:
    seen: list[Tensor] = []
    hook = norm.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    model(x)
    hook.remove()
    return seen[0].double()


@pytest.mark.parametrize("scheme", ["mpvg", "lape"])
def test_recorded_tokens_are_what_positions_are_added_to(scheme: str) -> None:
    model, x = small(scheme, reg_tokens=2), images(6, 2, 16, 16)
    with torch.no_grad():
        leaving = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    found = correlation_by_block(model, x)
    assert list(found) == [block for block, source in enumerate(model.plan.blocks) if source]
    for block in range(1, 4):
        tokens = model.blocks[block].norm1(leaving[block - 1]).mean(dim=0)
        table = model.positions().blocks[block][0, int(model.has_class_token) :]
        assert found[block] == pytest.approx(correlation(tokens, table), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
def test_every_family_is_recorded_as_it_runs(family: Family) -> None:
    model, x = build(family, "mpvg"), inputs(family, batch=5)
    recorder = record(model, x)
    assert [place.position is not None for place in recorder.places][: family.depth] == [
        source is not None for source in model.plan.blocks
    ]
    for place, seen in zip(recorder.places, recorder.blocks, strict=True):
        maps = tokens_at(model, x, place.norm)
        maps = (maps.flatten(1, 2) if maps.dim() == 4 else maps)[:, place.prefix :]
        assert seen.images == 5
        torch.testing.assert_close(seen.mean, maps.mean(dim=0), atol=1e-5, rtol=1e-5)
        if place.position is not None:
            assert seen.correlation().value == pytest.approx(correlation(maps.mean(dim=0), place.position), abs=1e-5)
            position = place.position.flatten()
            own = [np.corrcoef(one.flatten(), position)[0, 1] for one in maps]
            assert seen.correlation_per_image().value == pytest.approx(np.mean(own), abs=1e-5)
            assert seen.variance_share().value == pytest.approx(variance_share(maps, place.position), abs=1e-5)
    last = [name for name, _ in model.named_modules() if name == "norm"]
    assert last == ["norm"]
    assert recorder.after.mean.shape[-1] == model.num_features


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
@pytest.mark.parametrize("scheme", ["mpvg", "lape_gap", "gap_last"])
def test_a_folded_model_is_recorded_alike(family: Family, scheme: str) -> None:
    model, x = build(family, scheme), inputs(family, batch=4)
    own, folded = record(model, x), record(fold(model), x)
    for a, b in zip(own.blocks, folded.blocks, strict=True):
        assert (a.position is None) == (b.position is None)
        torch.testing.assert_close(a.mean, b.mean, atol=1e-4, rtol=1e-4)
        if a.position is not None:
            assert a.correlation() == pytest.approx(b.correlation(), abs=1e-4)
    assert own.positions is not None
    assert folded.positions is not None
    assert (own.positions.last is None) == (folded.positions.last is None)


def test_batches_make_no_difference_and_memory_does_not_grow() -> None:
    model, x = small("mpvg"), images(12, 2, 16, 16)
    one, several = record(model, x, batch=12), record(model, x, batch=5)
    for a, b in zip(one.blocks[1:], several.blocks[1:], strict=True):
        assert a.correlation() == pytest.approx(b.correlation(), abs=1e-6)
        assert a.correlation_per_image() == pytest.approx(b.correlation_per_image(), abs=1e-6)
        assert a.variance_share() == pytest.approx(b.variance_share(), abs=1e-6)

    def held(recorder: Recorder) -> int:
        of_maps = [vars(seen).values() for seen in (*recorder.blocks, recorder.before, recorder.after)]
        return sum(value.nbytes for values in of_maps for value in values if isinstance(value, Tensor))

    assert held(record(model, x[:2])) == held(several) > 0


def test_statistics_are_kept_in_float64() -> None:
    seen = MapStatistics(torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    weights = torch.zeros(0, 1)
    for value in (2.0**24, 1.0, 1.0):  # in float32 the ones would be lost
        seen.add(torch.tensor([[[value, 0.0]]]), weights)
    assert seen.mean.tolist() == [[(2**24 + 2) / 3, 0.0]]


def test_the_band_is_that_of_a_poisson_bootstrap_over_images() -> None:
    model, x = small("mpvg"), images(20, 2, 16, 16)
    seen = record(model, x, batch=7).blocks[2]
    maps = tokens_at(model, x, model.blocks[2].norm1).numpy()
    position = model.positions().blocks[2][0].detach().double().numpy()
    times = torch.poisson(torch.ones(20, 100), generator=torch.Generator().manual_seed(0)).numpy().T
    resampled = [np.average(maps, axis=0, weights=weights) for weights in times]
    scaled = np.arctanh([np.corrcoef(one.ravel(), position.ravel())[0, 1] for one in resampled])
    centre, half = np.arctanh(np.corrcoef(maps.mean(axis=0).ravel(), position.ravel())[0, 1]), 1.959964
    band = np.tanh([centre, centre - half * scaled.std(ddof=1), centre + half * scaled.std(ddof=1)])
    assert seen.correlation() == pytest.approx(band, abs=1e-5)
    shares = []
    for weights in times:
        read = np.repeat(maps, weights.astype(int), axis=0) + position
        spread = np.broadcast_to(position, read.shape)
        shares.append(np.cov(spread.ravel(), read.ravel(), ddof=0)[0, 1] / read.var())
    value, _, high = seen.variance_share()
    assert value is not None
    assert high == pytest.approx(value + half * np.std(shares, ddof=1), rel=1e-4)


def test_an_offset_of_all_tokens_changes_nothing_and_constant_ones_are_undefined() -> None:
    position, maps = images(6, 8, seed=1).double(), images(5, 6, 8, seed=2)
    plain, offset, constant = (MapStatistics(position, replicates=20) for _ in range(3))
    weights = torch.poisson(torch.ones(5, 20), generator=torch.Generator().manual_seed(0)).T
    plain.add(maps, weights)
    offset.add(maps + 100, weights)
    constant.add(torch.full_like(maps, 0.3), weights)
    for measure in ("correlation", "correlation_per_image", "variance_share"):
        assert getattr(offset, measure)() == pytest.approx(getattr(plain, measure)(), abs=1e-4)
    assert constant.correlation().value is constant.correlation_per_image().value is None
    assert constant.variance_share().value == pytest.approx(1)


def test_one_image_has_no_band() -> None:
    seen = record(small("mpvg"), images(1, 2, 16, 16)).blocks[2]
    for estimate in (seen.correlation(), seen.correlation_per_image(), seen.variance_share()):
        assert estimate.value is not None
        assert estimate.low is estimate.high is None


def test_recording_changes_nothing_and_leaves_nothing_behind() -> None:
    model, x = small("mpvg"), images(3, 2, 16, 16)
    with torch.inference_mode():
        expected = model(x)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with Recorder(model) as recorder:
        assert torch.equal(recorder.run(x), expected)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert sum(hooks) == 0


def test_a_plain_model_of_timm_has_tokens_and_no_position() -> None:
    model: Any = perturb(
        timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, num_heads=3, depth=3)
    )
    model, x = model.eval(), images(4, 3, 16, 16)
    check_plain(model)
    recorder = record(model, x)
    maps = tokens_at(model, x, model.blocks[1].norm1)[:, 1:]
    torch.testing.assert_close(recorder.blocks[1].mean, maps.mean(dim=0), atol=1e-5, rtol=1e-5)
    assert recorder.blocks[1].correlation() == (None, None, None)
    class_rows = tokens_at(model, x, model.norm)[:, :1]
    torch.testing.assert_close(recorder.prefix_after.mean, class_rows.mean(dim=0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"])
def test_other_models_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no plain vision transformer"):
        check_plain(timm.create_model(name))


@pytest.mark.parametrize(
    ("scheme", "changes"),
    [("mpvg", {}), ("pvg_cls:last_norm=0", {"reg_tokens": 2}), ("pvg_cls:last_norm=0", {"no_embed_class": True})],
)
def test_token_norms_are_those_around_the_last_norm(scheme: str, changes: dict[str, Any]) -> None:
    model, x = small(scheme, **changes), images(5, 2, 16, 16)
    recorder = record(model, x, shown=[0, 3])
    with torch.no_grad():
        leaving = model.forward_intermediates(x, indices=1, output_fmt="NLC", intermediates_only=True)[0]
        read = model.forward_features(x)[:, model.num_prefix_tokens :]
    assert len(recorder.norms) == 2
    for (before, after), image in zip(recorder.norms, (0, 3), strict=True):
        torch.testing.assert_close(before, leaving[image].double().norm(dim=1), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(after, read[image].double().norm(dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("parameter", "named"),
    [
        ("patch_embed.proj.weight", "the patch embedding puts out"),
        ("blocks.0.attn.qkv.weight", "block 0 puts out"),
        ("blocks.2.mlp.fc2.bias", "block 2 puts out"),
        ("blocks.3.norm1.weight", "block 3 puts out"),
        ("blocks.2.norm_pos.weight", "delivered to block 2"),
        ("norm_pos.bias", "delivered to the Last LN"),
        ("norm.weight", "the Last LN puts out"),
        ("head.bias", "the head puts out"),
    ],
)
def test_activations_that_are_not_finite_name_their_block(parameter: str, named: str) -> None:
    model = small("mpvg")
    model.get_parameter(parameter).data.view(-1)[0] = float("nan")
    with pytest.raises(NonFiniteActivationsError, match=named):
        record(model, images(4, 2, 16, 16))


def test_images_that_are_not_finite_are_said_to_be_at_fault() -> None:
    x = images(4, 2, 16, 16)
    x[3, 0, 0, 0] = float("inf")
    with pytest.raises(NonFiniteActivationsError, match="images 2 to 3: the images themselves"):
        record(small("mpvg"), x)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="built for"):
        record(small("mpvg", dynamic_img_size=True), images(2, 2, 24, 16))


def test_nothing_is_recorded_where_nothing_is_delivered() -> None:
    assert correlation_by_block(small("gap"), images(2, 2, 16, 16)) == {}


def test_swins_maps_keep_their_grids() -> None:
    recorder = record(build(SWIN, "mpvg"), inputs(SWIN, batch=2))
    assert [seen.grid for seen in recorder.blocks] == [(16, 16), (16, 16), (8, 8), (4, 4), (4, 4)]
    assert recorder.before.grid == (4, 4)
    assert record(build(VIT, "mpvg"), inputs(VIT)).before.grid is None
