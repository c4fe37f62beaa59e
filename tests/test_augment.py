"""Augmentation does to a batch what Pillow does to each image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

import augmentation_agreement as bench
from mpvg.data.augment import augment, chosen, erase, keys
from mpvg.data.augment.batch import apply
from mpvg.data.augment.crops import cut_and_resize
from mpvg.data.augment.draws import Drawn, draw
from mpvg.data.augment.kinds import Kind
from mpvg.data.augmentation import Augmentation
from mpvg.errors import UserError

FILL = {1: (0.4,), 3: bench.MEAN}
MOVES = [kind for kind in bench.LEVELS if kind >= Kind.ROTATE]
COLOURS = [kind for kind in bench.LEVELS if kind < Kind.ROTATE]
PADDED = Augmentation(shift=0, padding=4, flip=0.5)
WHOLE = Augmentation(shift=0, crop_scale=(0.08, 1), flip=0.5, rand_augment="rand-m9-n3-mstd0.5-inc1", padding=2)


def pictures(count: int = 48, size: tuple[int, int] = (32, 32), channels: int = 3) -> bench.Pixels:
    return bench.real_images(count, size)[..., :channels]


def levels(channels: int) -> list[int]:
    return [round(255 * part) for part in FILL[channels]]


def apart(kind: Kind, images: bench.Pixels, arguments: list[float], *, bicubic: bool) -> dict[str, Any]:
    options: Any = {"bicubic": bicubic, "fill": levels(images.shape[3])}
    return bench.distance(
        bench.by_us(kind, images, arguments, **options), bench.by_pillow(kind, images, arguments, **options)
    )


def on_every() -> Any:
    return mock.patch.object(chosen, "picks_out", return_value=False)


SHAPES = [((32, 32), 3), ((32, 32), 1), ((17, 40), 3), ((50, 23), 1)]


@pytest.mark.parametrize(("size", "channels"), SHAPES)
@pytest.mark.parametrize("kind", COLOURS, ids=lambda kind: kind.name)
def test_colours_are_exactly_pillows(kind: Kind, size: tuple[int, int], channels: int) -> None:
    images = pictures(size=size, channels=channels)
    assert apart(kind, images, bench.arguments_of(kind, len(images)), bicubic=False)["largest"] == 0


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize(("size", "channels"), SHAPES)
@pytest.mark.parametrize("kind", MOVES, ids=lambda kind: kind.name)
def test_moves_are_nearly_pillows(kind: Kind, size: tuple[int, int], channels: int, bicubic: bool) -> None:
    found = apart(kind, pictures(size=size, channels=channels), bench.arguments_of(kind, 48), bicubic=bicubic)
    assert float(found["mean"]) < 0.01
    assert found["largest"] <= 1


@pytest.mark.parametrize("kind", bench.LEVELS, ids=lambda kind: kind.name)
def test_arguments_at_their_ends(kind: Kind) -> None:
    _, low, high = bench.LEVELS[kind]
    arguments = [low, high, min(1.0, high)] * 4
    found = apart(kind, pictures(12), arguments, bicubic=True)
    assert (float(found["mean"]) < 0.01) if kind in MOVES else (found["largest"] == 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (2, 3), (3, 2), (3, 3)])
@pytest.mark.parametrize("kind", bench.LEVELS, ids=lambda kind: kind.name)
def test_tiny_and_flat_images(kind: Kind, size: tuple[int, int]) -> None:
    images = pictures(8, size)
    images[::2] = images[::2, :1, :1]
    assert apart(kind, images, bench.arguments_of(kind, 8), bicubic=True)["largest"] <= (1 if kind in MOVES else 0)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize(("size", "channels"), [*SHAPES, ((3, 2), 3), ((1, 1), 1)])
def test_crops_are_nearly_pillows(size: tuple[int, int], channels: int, bicubic: bool) -> None:
    images, boxes = pictures(size=size, channels=channels), bench.boxes_in(size, 48)
    flip, kinds = torch.arange(48) % 2 == 0, torch.full((48,), bicubic)
    ours = cut_and_resize(bench.to_batch(images), torch.tensor(boxes), kinds, flip)
    theirs = bench.crops_by_pillow(images, boxes, bicubic=bicubic)
    theirs[::2] = theirs[::2, :, ::-1]
    found = bench.distance(ours.permute(0, 2, 3, 1).numpy(), theirs)
    assert float(found["mean"]) < 0.01
    assert found["largest"] <= 2


@pytest.mark.skipif("MPVG_DATA" not in os.environ, reason="MPVG_DATA names no folder of data")
def test_real_images_of_32_pixels() -> None:
    images, name = bench.benchmark_images(300)
    assert name == "CIFAR-100"
    for row in bench.agreement(images):
        assert float(row["mean"]) < 0.01, row


def test_no_bits_are_black() -> None:
    """Where timm with a current Pillow raises."""
    batch = bench.to_batch(pictures(6))
    options: Any = {"bicubic": False, "fill": levels(3)}
    assert not bench.by_us(Kind.POSTERIZE, pictures(6), [0] * 6, **options).any()
    settings = Augmentation(shift=0, rand_augment="rand-m10-n8-p1-inc1")
    black = augment(batch.repeat(20, 1, 1, 1), settings, keys(0, 0, torch.arange(120)), fill=FILL[3])
    assert black.dtype == torch.uint8


def replayed(images: bench.Pixels, drawn: Drawn, *, padding: int) -> Iterator[bench.Pixels]:
    """Do what was drawn one image after the other, in timm's order."""
    assert drawn.crop is not None
    assert drawn.offsets is not None
    assert drawn.flip is not None
    assert drawn.operations is not None
    kinds, arguments, bicubic = (part.tolist() for part in drawn.operations)
    for i, image in enumerate(images):
        height, width, channels = image.shape
        one = image[None]
        boxes = drawn.crop.boxes[i : i + 1].tolist()
        one = bench.crops_by_pillow(one, boxes, bicubic=bool(drawn.crop.bicubic[i]))
        framed = ImageOps.expand(Image.fromarray(one[0].squeeze()), padding, fill=0)
        down, right = (drawn.offsets[i] + padding).tolist()
        window = framed.crop((right, down, right + width, down + height))
        one = np.asarray(ImageOps.mirror(window) if drawn.flip[i] else window).reshape(1, height, width, channels)
        for kind, argument, cubic in zip(kinds[i], arguments[i], bicubic[i], strict=True):
            if kind == Kind.POSTERIZE and argument == 0:
                one = np.zeros_like(one)
            elif kind != Kind.NOTHING:
                one = bench.by_pillow(Kind(kind), one, [argument], bicubic=cubic, fill=levels(channels))
        yield one[0]


@pytest.mark.parametrize(("size", "channels"), [((32, 32), 3), ((24, 37), 1)])
def test_all_of_it_in_timms_order(size: tuple[int, int], channels: int) -> None:
    images = pictures(150, size, channels)
    drawn = draw(WHOLE, keys(3, 1, torch.arange(150)), size)
    ours = apply(bench.to_batch(images), drawn, fill=FILL[channels]).permute(0, 2, 3, 1).numpy()
    theirs = np.stack(list(replayed(images, drawn, padding=2)))
    assert np.abs(ours.astype(int) - theirs).mean() < 0.2  # of a level; later operations enlarge what earlier ones left
    assert np.abs(images.astype(int) - theirs).mean() > 20


def test_a_frame_and_a_flip_alone() -> None:
    images = pictures(40)
    drawn = draw(PADDED, keys(0, 0, torch.arange(40)), (32, 32))
    ours = augment(bench.to_batch(images), PADDED, keys(0, 0, torch.arange(40)), fill=FILL[3])
    framed = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    assert drawn.offsets is not None
    assert drawn.flip is not None
    for image, frame, (down, right), flip in zip(
        ours.permute(0, 2, 3, 1).numpy(), framed, (drawn.offsets + 4).tolist(), drawn.flip.tolist(), strict=True
    ):
        expected = frame[down : down + 32, right : right + 32]
        np.testing.assert_array_equal(image, expected[:, ::-1] if flip else expected)
    flips = augment(bench.to_batch(images), Augmentation(shift=0, flip=1), keys(0, 0, torch.arange(40)), fill=FILL[3])
    np.testing.assert_array_equal(flips.permute(0, 2, 3, 1).numpy(), images[:, :, ::-1])


def augmented(batch: Tensor, positions: Tensor, *, epoch: int = 0) -> Tensor:
    return augment(batch, WHOLE, keys(1, epoch, positions), fill=FILL[batch.shape[1]])


def test_an_image_does_not_depend_on_its_batch() -> None:
    batch, positions = bench.to_batch(pictures(96)), torch.arange(96)
    whole, order = augmented(batch, positions), torch.randperm(96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augmented(batch[order], positions[order]), whole[order])
    for i in range(96):
        assert torch.equal(augmented(batch[i : i + 1], positions[i : i + 1])[0], whole[i])


def test_working_on_all_images_gives_the_same() -> None:
    batch, positions = bench.to_batch(pictures(64, (24, 31))), torch.arange(64)
    expected = augmented(batch, positions)
    with on_every():
        assert torch.equal(augmented(batch, positions), expected)
        with mock.patch("mpvg.data.augment.batch._AT_ONCE", 10 * 3 * 24 * 31):
            assert torch.equal(augmented(batch, positions), expected)


def test_nothing_waits_for_the_device() -> None:
    """Tensors without contents cannot be looked at: no size or branch may hang on what was drawn."""
    batch, positions = torch.empty(8, 3, 20, 24, dtype=torch.uint8, device="meta"), torch.arange(8, device="meta")
    assert augmented(batch, positions).shape == batch.shape
    images = torch.empty(8, 3, 20, 24, device="meta")
    assert erase(images, 0.5, keys(0, 0, positions)).shape == images.shape


def test_it_is_drawn_anew_each_epoch_and_nothing_else() -> None:
    batch, positions = bench.to_batch(pictures(32)), torch.arange(32)
    before = batch.clone()
    first = augmented(batch, positions)
    assert torch.equal(augmented(batch, positions), first)
    assert not torch.equal(augmented(batch, positions, epoch=1), first)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmented(batch, positions), first)
    only = Augmentation(shift=0, rand_augment="rand-m9-mstd0.5-inc1")
    augment(batch, only, keys(0, 0, positions), fill=FILL[3])
    assert torch.equal(batch, before)
    nothing = augment(batch, Augmentation(shift=0), keys(0, 0, positions), fill=FILL[3])
    assert torch.equal(nothing, before)


def test_what_is_not_done_is_refused() -> None:
    batch, positions = bench.to_batch(pictures(2)), torch.arange(2)
    for text, said in (("rand-m9-t3a", "GaussianBlur"), ("rand-m9-n16-tweights", "15 operations: lower n")):
        with pytest.raises(UserError, match=said):
            augment(batch, Augmentation(rand_augment=text), keys(0, 0, positions), fill=FILL[3])
