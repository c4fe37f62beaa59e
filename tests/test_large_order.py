"""The order of an epoch: counts, repeats, locality, and how it is dealt out to ranks and readers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpvg.data.large import LargeSplit, epoch_order
from mpvg.data.large.order import StreamOrder, batch_positions, epoch_draws
from mpvg.errors import UserError

IMAGENET = 1_281_167


class _Stub(LargeSplit):
    read = where = parts = None  # type: ignore[assignment]


def stub(sizes: list[int]) -> LargeSplit:
    return _Stub(count=sum(sizes), labels=None, groups=np.array(sizes), streamed=True)  # type: ignore[abstract]


def test_an_epoch_is_a_permutation_of_seed_and_epoch() -> None:
    order = epoch_order(1000, seed=3, epoch=5)
    np.testing.assert_array_equal(order, np.random.Generator(np.random.PCG64([3, 5])).permutation(1000))
    for seed, epoch in ((3, 6), (4, 5), (5, 3)):
        other = epoch_order(1000, seed=seed, epoch=epoch)
        assert sorted(other) == list(range(1000))
        assert (other != order).mean() > 0.9


def test_repeats_of_imagenet() -> None:
    order = epoch_order(IMAGENET, seed=0, epoch=0, repeats=3)
    assert len(order) == epoch_draws(IMAGENET, 3) == 1_281_024
    triples = order.reshape(-1, 3)
    assert (triples == triples[:, :1]).all()
    assert len(np.unique(order)) == 427_008  # a third of the images
    assert epoch_draws(IMAGENET, 1) == IMAGENET
    assert [epoch_draws(count, 3) for count in (255, 256, 511, 50_000)] == [255, 256, 256, 49_920]
    np.testing.assert_array_equal(
        np.bincount(epoch_order(10, seed=0, epoch=0, repeats=3)),
        np.bincount(np.repeat(epoch_order(10, seed=0, epoch=0)[:4], 3)[:10]),
    )


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_are_dealt_in_turn(world_size: int) -> None:
    for batch in (0, 3):
        parts = [batch_positions(batch, batch_size=24, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {24 // world_size}
        assert np.stack(parts, axis=1).reshape(-1).tolist() == list(range(24 * batch, 24 * batch + 24))


def test_shards_are_shuffled_and_images_within_some_of_them() -> None:
    sizes = np.full(60, 1000)
    order = epoch_order(60_000, seed=1, epoch=0, groups=sizes)
    assert sorted(order) == list(range(60_000))
    shards = order // 1000
    windows = [set(shards[start : start + 9000]) for start in range(0, 54_000, 9000)]
    assert [len(window) for window in windows] == [9] * 6  # 9 shards hold the first 8,192 images or more
    assert sorted(windows[0]) != list(range(9))
    assert np.mean([len(set(shards[start : start + 100])) for start in range(0, 6000, 100)]) > 8.9  # well mixed
    assert (order != epoch_order(60_000, seed=1, epoch=1, groups=sizes)).mean() > 0.9
    assert sorted(epoch_order(7, seed=0, epoch=0, groups=np.array([3, 0, 4]))) == list(range(7))


def streams(split: LargeSplit, readers: int, **changes: Any) -> list[list[int]]:
    order = StreamOrder(split, **{"seed": 0, "epoch": 0, "repeats": 1, "readers": readers, **changes})
    share = len(split) // readers
    return [order.images(reader, 0, share).tolist() for reader in range(readers)]


def test_readers_have_shards_of_their_own() -> None:
    split = stub([100] * 40)
    found = streams(split, 4)
    assert sorted(np.concatenate(found)) == list(range(4000))
    assert sum(len({image // 100 for image in images}) for images in found) == 40
    for images in found:
        assert len({image // 100 for image in images[:100]}) > 7  # of 10 shards
    assert found == streams(split, 4)
    assert found != streams(split, 4, epoch=1)
    assert found != streams(split, 4, seed=1)
    inner = [streams(stub([100]), 1, epoch=epoch) for epoch in range(2)]
    assert inner[0] != inner[1]  # images of one shard too
    assert inner[0] != streams(stub([100]), 1, seed=1)


def test_a_stream_can_be_entered_anywhere() -> None:
    order = StreamOrder(stub([50] * 9), seed=0, epoch=0, repeats=3, readers=2)
    whole = order.images(1, 0, 300)
    assert (whole.reshape(-1, 3) == whole[::3, None]).all()
    for first in (0, 1, 97, 250):
        np.testing.assert_array_equal(order.images(1, first, 50), whole[first : first + 50])


def test_uneven_streams_begin_again() -> None:
    order = StreamOrder(stub([10, 30]), seed=0, epoch=0, repeats=1, readers=2)
    found = [order.images(reader, 0, 20).tolist() for reader in range(2)]
    assert sorted(len(set(images)) for images in found) == [10, 20]
    small = next(images for images in found if len(set(images)) == 10)
    assert small[:10] == small[10:]


def test_more_readers_than_shards_share_them() -> None:
    assert sorted(np.concatenate(streams(stub([64]), 8))) == list(range(64))
    assert all(streams(stub([5, 0, 4]), 9))
    with pytest.raises(UserError, match=r"10 readers \(ranks times workers\) for 9 images: use fewer workers"):
        streams(stub([5, 4]), 10)
