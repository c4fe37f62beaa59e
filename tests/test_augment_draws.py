"""Random numbers are random, and what is drawn from them is drawn as often as timm draws it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare, norm
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor

from mpvg.data.augment import erase, erasing, keys, uniform
from mpvg.data.augment.draws import draw
from mpvg.data.augment.erasing import draw_erasing
from mpvg.data.augment.kinds import ARGUMENTS, Kind
from mpvg.data.augment.operations import Operations, arguments
from mpvg.data.augment.streams import CROP, FLIP, NOISE, normal, uniforms
from mpvg.data.augmentation import Augmentation

COUNT = 40_000
KEYS = keys(0, 0, torch.arange(COUNT))
RANDOM = "rand-m9-mstd0.5-inc1"
LIKELY = 0.001
WORD = 2**64


def as_likely(counts: Tensor, probabilities: Sequence[float] | None = None) -> bool:
    """Whether counts are what probabilities give, equal ones if None."""
    expected = None if probabilities is None else np.array(probabilities) * int(counts.sum())
    return bool(chisquare(counts.numpy(), expected).pvalue > LIKELY)


def histogram(numbers: Tensor, bins: int) -> Tensor:
    """Return how many of numbers from 0 to below 1 fall in each of equal parts."""
    return (numbers * bins).long().flatten().bincount(minlength=bins)


def alike(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two samples of whole numbers are of one distribution."""
    top = max(max(one), max(other)) + 1
    table = np.stack([np.bincount(one, minlength=top), np.bincount(other, minlength=top)])
    often = table.sum(0) >= 20
    table = np.concatenate([table[:, often], table[:, ~often].sum(1, keepdims=True)], axis=1)
    return bool(chi2_contingency(table[:, table.sum(0) > 0]).pvalue > LIKELY)


def drawn_operations(text: str, *, interpolation: str = "random") -> Operations:
    found = draw(Augmentation(rand_augment=text, interpolation=interpolation), KEYS, (32, 32)).operations
    assert found is not None
    return found


def splitmix(state: int) -> int:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ state >> shift) * factor % WORD
    return state ^ state >> 31


def test_hashes_are_splitmix64() -> None:
    assert splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # its first number from the state 0, as published
    for key, number in zip(KEYS[:50].tolist(), uniform(KEYS[:50], 3, purpose=FLIP).tolist(), strict=True):
        start = splitmix((FLIP + 1) * 0x9E3779B97F4A7C15 % WORD)
        states = [(key + start + i * 0x9E3779B97F4A7C15) % WORD for i in (1, 2, 3)]
        assert number == [(splitmix(state) >> 40) / 2**24 for state in states]


def test_keys_tell_seed_epoch_and_position_apart() -> None:
    positions = torch.arange(300)
    found = torch.cat([keys(seed, epoch, positions) for seed in (-1, 0, 1, 2**70 + 5) for epoch in (0, 1, 2)])
    assert len(found.unique()) == len(found)
    assert torch.equal(keys(5, 7, positions)[123:124], keys(5, 7, torch.tensor([123])))


def test_numbers_are_even_and_independent() -> None:
    numbers = uniform(KEYS, 4, purpose=CROP)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    others = [uniform(KEYS, 1, purpose=FLIP)[:, 0], uniform(keys(0, 1, torch.arange(COUNT)), 1, purpose=CROP)[:, 0]]
    others += [uniform(keys(1, 0, torch.arange(COUNT)), 1, purpose=CROP)[:, 0], numbers[:, 1], numbers[:, 0].roll(1)]
    for other in others:
        assert as_likely(histogram(other, 100))
        assert as_likely(((numbers[:, 0] * 16).long() * 16 + (other * 16).long()).bincount(minlength=256))
    assert torch.equal(uniform(KEYS, 9, purpose=CROP)[:, :4], numbers)
    assert torch.equal(uniforms(KEYS, {FLIP: 1, CROP: 4})[1], numbers)


def test_normal_numbers_are_normal() -> None:
    numbers = normal(KEYS, 3, purpose=NOISE)
    for column in numbers.unbind(1):
        assert as_likely(histogram(torch.from_numpy(norm.cdf(column.numpy())), 50))
    halves = (numbers > 0).long()
    assert as_likely((halves * torch.tensor([1, 2, 4])).sum(1).bincount(minlength=8))
    assert torch.equal(normal(KEYS[7:9], 8, purpose=NOISE)[:, :3], numbers[7:9])


def test_each_operation_is_drawn_as_often() -> None:
    kind, _, bicubic = drawn_operations(RANDOM)
    each = [0.5] + [0.5 / 15] * 15
    assert kind.shape == (COUNT, 2)
    assert as_likely((kind[:, 0] * 16 + kind[:, 1]).bincount(minlength=256), np.outer(each, each).flatten().tolist())
    assert as_likely((kind * 2 + bicubic)[kind > 0].bincount()[2:])
    for name in ("bilinear", "bicubic"):
        assert (drawn_operations(RANDOM, interpolation=name).bicubic == (name == "bicubic")).all()


def test_magnitudes_are_normal_and_clipped() -> None:
    kind, argument, _ = drawn_operations(RANDOM)
    degrees = argument[kind == Kind.ROTATE]
    assert as_likely((degrees > 0).long().bincount())
    magnitudes = degrees.abs() / 3
    edges = [-np.inf, *np.arange(8, 10, 0.25), 9.9999, np.inf]
    counts = torch.tensor(np.histogram(magnitudes.numpy(), [0, *edges[1:-1], 11])[0])
    assert as_likely(counts, np.diff(norm.cdf(edges, 9, 0.5)).tolist())
    # The two of an image are drawn apart.
    both = (kind == Kind.ROTATE).all(1)
    assert abs(np.corrcoef(argument[both].abs().mT.numpy())[0, 1]) < 0.35


def test_other_strings_of_timm() -> None:
    kind, argument, _ = drawn_operations("rand-m5-n3-p0.3")
    assert as_likely(kind.flatten().bincount(minlength=16), [0.7] + [0.3 / 15] * 15)
    assert set(argument[kind == Kind.ROTATE].abs().tolist()) == {15.0}
    kind, argument, _ = drawn_operations("rand-m8-mstd101")
    assert as_likely(histogram(argument[kind == Kind.ROTATE].abs() / 24, 20))
    kind, argument, _ = drawn_operations("rand-m15-mstd3-mmax20")
    assert 30 < argument[kind == Kind.ROTATE].max() <= 60


def test_weighted_operations_are_drawn_without_replacement() -> None:
    text = "rand-m9-p1-tweights"
    kind, _, _ = drawn_operations(text)
    made = auto_augment.rand_augment_transform(text, {})
    weights = np.zeros(16)
    for op, weight in zip(made.ops, made.choice_weights, strict=True):
        weights[ARGUMENTS[op.name].kind] = weight
    pairs = weights[:, None] * weights / (1 - weights[:, None])
    np.fill_diagonal(pairs, 0)
    counts, often = (kind[:, 0] * 16 + kind[:, 1]).bincount(minlength=256), pairs.flatten() * COUNT >= 5
    assert counts[pairs.flatten() == 0].sum() == 0
    rest = [counts[~often].sum().item()]
    probabilities = [*pairs.flatten()[often], pairs.flatten()[~often].sum()]
    assert as_likely(torch.tensor(counts[often].tolist() + rest), probabilities)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("negated", [False, True])
def test_arguments_are_timms(name: str, negated: bool) -> None:
    magnitudes = [0, 1, 2, 3, 4, 5, 6, 7, 7.4999, 8, 9, 9.3, 10]
    level = auto_augment.LEVEL_TO_ARG[name]
    with mock.patch.object(random, "random", return_value=0.9 if negated else 0.1):
        expected = [level(magnitude, {})[0] if level else 0 for magnitude in magnitudes]
    chosen = torch.zeros(len(magnitudes), dtype=torch.int64)
    kind, found = arguments((name,), chosen, torch.tensor(magnitudes), torch.full(chosen.shape, negated))
    if name == "Desaturate":  # timm's function makes a factor of it
        expected = [min(1.0, max(0.0, 1.0 - value)) for value in expected]
    assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert set(kind.tolist()) == {ARGUMENTS[name].kind}


def test_flips_are_drawn_as_often() -> None:
    for probability in (0.2, 0.5):
        flip = draw(Augmentation(flip=probability), KEYS, (32, 32)).flip
        assert flip is not None
        assert as_likely(flip.long().bincount(), [1 - probability, probability])


def test_padded_windows_lie_everywhere() -> None:
    offsets = draw(Augmentation(padding=3), KEYS, (32, 32)).offsets
    assert offsets is not None
    assert as_likely(((offsets[:, 0] + 3) * 7 + offsets[:, 1] + 3).bincount(minlength=49))


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((32, 32), (0.8, 1), (3 / 4, 4 / 3)),
        ((32, 32), (0.08, 1), (3 / 4, 4 / 3)),
        ((24, 40), (0.3, 0.9), (0.5, 3)),
        ((10, 60), (0.8, 1), (3 / 4, 4 / 3)),  # nearly none fits
        ((60, 10), (0.8, 1), (3 / 4, 4 / 3)),
    ],
)
def test_crops_are_drawn_as_timm_does(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    crop = draw(Augmentation(crop_scale=scale, crop_ratio=ratio, interpolation="random"), KEYS, size).crop
    assert crop is not None
    random.seed(0)
    picture = torch.empty(1, *size)
    theirs = [RandomResizedCropAndInterpolation.get_params(picture, scale, ratio) for _ in range(10_000)]
    for ours, other in zip(crop.boxes.unbind(1), zip(*theirs, strict=True), strict=True):
        assert alike(ours.tolist(), other)
    assert alike((crop.boxes[:, 2] * crop.boxes[:, 3]).tolist(), [h * w for _, _, h, w in theirs])
    assert as_likely(crop.bicubic.long().bincount())


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3)])
def test_crops_of_tiny_images_are_within_them(size: tuple[int, int]) -> None:
    crop = draw(Augmentation(crop_scale=(0.05, 1)), KEYS, size).crop
    assert crop is not None
    top, left, height, width = crop.boxes.unbind(1)
    assert min(height.min(), width.min()) == 1
    assert (min(top.min(), left.min()) >= 0) & ((top + height).max() <= size[0]) & ((left + width).max() <= size[1])


def boxes_of_timm(size: tuple[int, int], count: int) -> list[tuple[int, int, int, int]]:
    random.seed(0)
    erased = RandomErasing(1, mode="pixel", device="cpu")
    found = []
    for _ in range(count):
        rows, columns = np.nonzero(erased(torch.zeros(1, *size))[0].numpy())
        if len(rows):
            top, left = int(rows.min()), int(columns.min())
            found.append((top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left))
    return found


@pytest.mark.parametrize("size", [(32, 32), (12, 30)])
def test_rectangles_are_erased_as_timm_does(size: tuple[int, int]) -> None:
    theirs = boxes_of_timm(size, 6000)
    boxes, chosen = draw_erasing(KEYS, size, 0.25)
    fits = draw_erasing(KEYS, size, 1)[1]
    assert as_likely(chosen[fits].long().bincount(), [0.75, 0.25])
    for ours, other in zip(boxes[fits & (boxes[:, 2:] > 0).all(1)].unbind(1), zip(*theirs, strict=True), strict=True):
        assert alike(ours.tolist(), other)


def test_erased_pixels_are_noise_and_others_stay() -> None:
    images, some = torch.full((2000, 3, 16, 20), 7.0), KEYS[:2000]
    erased, (boxes, chosen) = erase(images, 0.5, some), draw_erasing(some, (16, 20), 0.5)
    changed = (erased != 7).all(dim=1)
    assert torch.equal(changed.sum(dim=(1, 2)), boxes[:, 2] * boxes[:, 3] * chosen)
    for image, (top, left, height, width) in zip(changed[chosen], boxes[chosen].tolist(), strict=True):
        assert image[top : top + height, left : left + width].all()
    noise = erased.movedim(1, -1)[changed]
    assert as_likely(histogram(torch.from_numpy(norm.cdf(noise.numpy())), 50))
    assert as_likely(((noise > 0).long() * torch.tensor([1, 2, 4])).sum(1).bincount(minlength=8))
    assert (images == 7).all()


def test_erasing_does_not_depend_on_the_batch() -> None:
    images, some = torch.zeros(64, 3, 9, 14), KEYS[:64]
    expected = erase(images, 0.6, some)
    for i in range(64):
        assert torch.equal(erase(images[i : i + 1], 0.6, some[i : i + 1])[0], expected[i])
    with mock.patch.object(erasing, "_AT_ONCE", 1000):
        assert torch.equal(erase(images, 0.6, some), expected)
    with mock.patch("mpvg.data.augment.chosen.picks_out", return_value=False):
        assert torch.equal(erase(images, 0.6, some), expected)
    half = erase(images.bfloat16(), 0.6, some)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, expected.bfloat16())
    assert not torch.equal(erase(images, 0.6, keys(0, 1, torch.arange(64))), expected)
    assert torch.equal(erase(images, 0, some), images)


def test_streams_of_purposes_do_not_hang_on_settings() -> None:
    """Without the crop, the flips and operations of a seed stay the same."""
    all_of_it = draw(Augmentation(crop_scale=(0.5, 1), padding=2, flip=0.5, rand_augment=RANDOM), KEYS[:99], (32, 32))
    less = draw(Augmentation(flip=0.5, rand_augment=RANDOM), KEYS[:99], (32, 32))
    assert all_of_it.operations is not None
    assert less.operations is not None
    assert all_of_it.flip is not None
    assert less.flip is not None
    assert torch.equal(all_of_it.flip, less.flip)
    assert torch.equal(all_of_it.operations.kind, less.operations.kind)
