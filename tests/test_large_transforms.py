"""What is drawn of an image in training, against values that are computed here; and how it is tested."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, rand_augment_transform
from torchvision import transforms

from mpvg.data.augmentation import Augmentation
from mpvg.data.large import eval_transform, train_transform
from mpvg.data.large.transforms import drawing
from mpvg.errors import UserError

MEAN = (0.485, 0.456, 0.406)
DEIT = Augmentation(crop_scale=(0.08, 1), flip=0.5, rand_augment="rand-m9-mstd0.5-inc1")


def ramps(height: int = 200, width: int = 250) -> Image.Image:
    """Return an image whose red tells the column and whose green tells the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(pixels)


def draws(augmentation: Augmentation, size: tuple[int, int], image: Image.Image, count: int) -> np.ndarray[Any, Any]:
    transform = train_transform(augmentation, size, mean=MEAN)
    with drawing() as draw:
        found = []
        for position in range(count):
            draw(0, 0, position)
            found.append(transform(image))
    return torch.stack(found).numpy()


def test_crops_have_the_areas_and_ratios_asked_for() -> None:
    wide = ramps(256, 256)
    found = draws(Augmentation(crop_scale=(0.25, 0.5), crop_ratio=(0.5, 2), flip=0.5), (32, 32), wide, 1500)
    found = found.astype(float)
    width = np.abs(found[:, 0, 16, 28] - found[:, 0, 16, 3]) * 32 / 25
    height = (found[:, 1, 28, 16] - found[:, 1, 3, 16]) * 32 / 25
    area, ratio = width * height / 256**2, width / height
    assert 0.235 < area.min() < 0.27
    assert 0.48 < area.max() < 0.52
    assert 0.48 < ratio.min() < 0.56
    assert 1.8 < ratio.max() < 2.1
    assert abs(np.log(ratio).mean()) < 0.04  # even in log
    assert abs(area.mean() - 0.375) < 0.01
    flipped = found[:, 0, 16, 28] < found[:, 0, 16, 3]
    assert abs(flipped.mean() - 0.5) < 0.05
    left = np.minimum(found[:, 0, 16, 0], found[:, 0, 16, 31]) / (256 - width)
    assert abs(left.mean() - 0.5) < 0.05  # anywhere
    assert draws(Augmentation(crop_scale=(0.25, 0.5)), (32, 32), wide, 50)[:, 0, 16, 28].std() > 0


def test_interpolations() -> None:
    edge = Image.fromarray(np.where(np.arange(16) < 8, 50, 200).astype(np.uint8)[None].repeat(16, 0)).convert("RGB")
    for crop in (None, (1.0, 1.0)):
        bilinear, bicubic, both = (
            draws(Augmentation(crop_scale=crop, crop_ratio=(1, 1), interpolation=name), (40, 40), edge, 60)
            for name in ("bilinear", "bicubic", "random")
        )
        assert (bilinear.min(), bilinear.max()) == (50, 200)
        assert bicubic.min() < 50  # it overshoots
        overshoots = (both.reshape(60, -1).min(axis=1) < 50).mean()
        assert 0.25 < overshoots < 0.75


def test_whole_images_with_a_border() -> None:
    """As T2T-ViT is fine-tuned: resized, then a crop from a black border."""
    white = Image.new("RGB", (20, 30), (255, 255, 255))
    found = draws(Augmentation(padding=28), (224, 224), white, 400)
    assert found.shape == (400, 3, 224, 224)
    top = np.array([(pixels[0, :, 112] == 0).argmin() for pixels in found])
    bottom = np.array([(pixels[0, ::-1, 112] == 0).argmin() for pixels in found])
    assert ((top == 0) | (bottom == 0)).all()
    assert (top.max(), bottom.max()) == (28, 28)
    shift = bottom - top
    assert abs(shift.mean()) < 3
    assert abs(shift.std() - np.sqrt((57**2 - 1) / 12)) < 1.5  # of 57 shifts, each as likely
    plain = draws(Augmentation(), (20, 30), ramps(20, 30), 2)
    assert (plain == np.asarray(ramps(20, 30)).transpose(2, 0, 1)).all()
    with pytest.raises(UserError, match="padding 4 with crop_scale"):
        train_transform(Augmentation(padding=4, crop_scale=(0.5, 1)), (32, 32), mean=MEAN)


def ops_of(transform: Any) -> list[Any]:
    return next(piece for piece in transform.transforms if hasattr(piece, "ops")).ops


@pytest.mark.parametrize(
    ("interpolation", "resample"),
    [
        ("bicubic", Image.Resampling.BICUBIC),
        ("random", (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)),
    ],
)
@pytest.mark.parametrize("crop", [(0.08, 1.0), None])
def test_random_operations_have_timms_settings(interpolation: str, resample: Any, crop: Any) -> None:
    settings = Augmentation(crop_scale=crop, interpolation=interpolation, rand_augment="rand-m9-mstd0.5-inc1")
    ops = ops_of(train_transform(settings, (224, 192), mean=MEAN))
    assert len(ops) == 15
    for op in ops:
        assert (op.prob, op.magnitude, op.magnitude_std) == (0.5, 9, 0.5)
        assert op.hparams["translate_const"] == 86  # int(0.45 * 192)
        assert op.kwargs == {"fillcolor": (124, 116, 104), "resample": resample}


def test_random_operations_are_as_frequent_as_they_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    called: Counter[str] = Counter()
    applied: Counter[str] = Counter()
    transform = train_transform(DEIT, (8, 8), mean=MEAN)
    for op in ops_of(transform):

        def counted(image: Image.Image, *args: Any, name: str = op.name, **kwargs: Any) -> Image.Image:
            applied[name] += 1
            return image

        op.aug_fn = counted
    original = AugmentOp.__call__

    def noted(self: Any, image: Image.Image) -> Image.Image:
        called[self.name] += 1
        return original(self, image)

    monkeypatch.setattr(AugmentOp, "__call__", noted)
    with drawing() as draw:
        for position in range(2000):
            draw(0, 0, position)
            transform(ramps(16, 16))
    assert sum(called.values()) == 4000  # two an image
    assert len(called) == 15
    assert max(abs(count - 4000 / 15) for count in called.values()) < 5 * np.sqrt(4000 / 15)
    assert abs(sum(applied.values()) - 2000) < 5 * np.sqrt(1000)


@pytest.mark.parametrize("crop", [(0.5, 1.0), None])
def test_posterize_to_no_bits_is_black_through_the_whole_transform(crop: Any) -> None:
    settings = Augmentation(crop_scale=crop, rand_augment="rand-m10-n1-p1-inc1")
    image = Image.fromarray(np.random.default_rng(0).integers(100, 200, (64, 64, 3), dtype=np.uint8))
    black = (draws(settings, (32, 32), image, 150) == 0).all(axis=(1, 2, 3))
    assert 0.02 < black.mean() < 0.15  # one of 15 operations
    transform = train_transform(settings, (32, 32), mean=MEAN)
    (posterize,) = [op for op in ops_of(transform) if op.name.startswith("Posterize")]
    for bits, kept in ((-4, 0), (0, 0), (1, 128), (3, 224), (8, 255)):
        assert (np.asarray(posterize.aug_fn(image, bits)) == np.asarray(image) & kept).all()
    pickle.loads(pickle.dumps(transform))


def test_timm_itself_is_left_as_it_is() -> None:
    train_transform(Augmentation(rand_augment="rand-m10-n1-p1-inc1"), (32, 32), mean=MEAN)
    ops = rand_augment_transform("rand-m10-n1-p1-inc1", {}).ops
    assert {op.aug_fn.__module__ for op in ops} == {"timm.data.auto_augment"}


@pytest.mark.parametrize(("size", "crop", "resized"), [((224, 224), 0.875, 256), ((224, 224), 0.9, 248)])
def test_testing_takes_the_centre(size: tuple[int, int], crop: float, resized: int) -> None:
    image = ramps(200, 250)
    for name in ("bicubic", "bilinear"):
        expected = transforms.functional.center_crop(
            transforms.functional.resize(image, resized, transforms.InterpolationMode(name)), list(size)
        )
        found = eval_transform(size, crop=crop, interpolation=name)(image)
        assert found.dtype == torch.uint8
        np.testing.assert_array_equal(found.numpy(), np.asarray(expected).transpose(2, 0, 1))
    assert eval_transform((24, 40), crop=1, interpolation="bicubic")(image).shape == (3, 24, 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 0.0}, "crop 0.0: name a part"),
        ({"crop": 1.5}, "crop 1.5: name a part"),
        ({"interpolation": "random"}, "interpolation 'random': testing needs"),
    ],
)
def test_bad_settings_of_testing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        eval_transform((8, 8), **{"crop": 1.0, "interpolation": "bicubic", **changes})


GENERATORS: list[Callable[[], float]] = [random.random, np.random.random, lambda: torch.rand(()).item()]


@pytest.mark.parametrize("generator", GENERATORS)
def test_streams_differ_by_each_number_and_are_given_back(generator: Callable[[], float]) -> None:
    random.gauss(0, 1)  # half of a pair is kept
    before = random.getstate(), torch.get_rng_state()
    with drawing() as draw:
        found = set()
        for numbers in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 0, 0)):
            draw(*numbers)
            first = generator()
            draw(*numbers)
            assert generator() == first
            found.add(first)
        assert len(found) == 5
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
