"""Recording sequences: against plain loops over single sequences, and padding that must not matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mpvg import fold
from mpvg.analysis.interventions import causal_test
from mpvg.analysis.map_statistics import MapStatistics
from mpvg.analysis.measures import variance_share_of_moments, variance_share_of_rows
from mpvg.analysis.record import NonFiniteActivationsError, Recorder, correlation_by_block
from mpvg.analysis.sequence_statistics import Reach, SequenceStatistics
from sequence_models import Batch, batches, sequences, small

Array = npt.NDArray[np.float64]
LENGTHS = (3, 20, 7, 5, 12, 8, 1)
KIND = pytest.mark.parametrize("kind", ["text", "series"])


def record(model: Any, given: list[Batch], **options: Any) -> Recorder:
    with Recorder(model, **options) as recorder:
        for x, mask in given:
            recorder.run(x, mask)
    return recorder


def numbers(recorder: Recorder) -> Tensor:
    """Return every measure of a recording with its band, and all maps, in a row."""
    found = [seen.mean for seen in (*recorder.blocks, recorder.before, recorder.after)]
    found += [vector for vector in recorder.read_out() or () if vector is not None]
    for seen in recorder.blocks:
        if seen.position is not None:
            for estimate in (seen.correlation(), seen.correlation_per_image(), seen.variance_share()):
                found.append(torch.tensor([value for value in estimate if value is not None], dtype=torch.float64))
    return torch.cat([values.flatten() for values in found])


def same(given: Recorder, expected: Recorder, *, within: float = 1e-9) -> bool:
    return bool((numbers(given) - numbers(expected)).abs().max() < within)


@dataclass(frozen=True)
class Alone:
    """What one sequence by itself, without padding, puts into a norm or out of it: (n, D), patch tokens only."""

    maps: list[Array]
    prefix: list[Array]

    def mean_map(self, times: Array) -> Array:
        """Return the mean over the sequences that have row n, each so many times, of rows that half of them reach."""
        longest = max(len(one) for one in self.maps)
        rows = []
        for n in range(longest):
            reaching = [at for at, one in enumerate(self.maps) if len(one) > n]
            if 2 * len(reaching) >= len(self.maps):
                weights = [times[at] for at in reaching]
                rows.append(sum(w * self.maps[at][n] for w, at in zip(weights, reaching, strict=True)) / sum(weights))
        return np.array(rows)


def alone(model: Any, items: list[Tensor], norm: Any, *, enters: bool = False) -> Alone:
    seen: list[Array] = []

    def hook(module: Any, args: Any, output: Tensor) -> None:
        seen.append((args[0] if enters else output)[0].detach().numpy())

    handle = norm.register_forward_hook(hook)
    with torch.no_grad():
        for item in items:
            model(item[None])
    handle.remove()
    prefix = model.num_prefix_tokens
    return Alone([one[prefix:] for one in seen], [one[:prefix] for one in seen])


def share(maps: list[Array], position: Array) -> float:
    """Return the position's part in the variance of all that enters the attention, entry by entry."""
    read = np.concatenate([(one + position[: len(one)]).ravel() for one in maps])
    spread = np.concatenate([position[: len(one)].ravel() for one in maps])
    return float(np.cov(spread, read, ddof=0)[0, 1] / read.var())


def corr(tokens: Array, position: Array) -> float:
    return float(np.corrcoef(tokens.ravel(), position[: len(tokens)].ravel())[0, 1])


@KIND
@pytest.mark.parametrize("scheme", ["mpvg", "lape", "pvg_cls:last_norm=0", "mpvg:hierarchical=false"])
def test_a_recording_is_a_plain_loop_over_sequences(kind: str, scheme: str) -> None:
    model, items = small(kind, scheme), sequences(kind, *LENGTHS)
    recorder = record(model, batches(items, 3, 4))
    times = torch.poisson(torch.ones(3, 100), generator=(random := torch.Generator().manual_seed(0))).numpy()
    drawn = np.concatenate([times, torch.poisson(torch.ones(4, 100), generator=random).numpy()]).T
    assert recorder.images == 7
    for place, seen in zip(recorder.places, recorder.blocks, strict=True):
        own = alone(model, items, place.norm)
        tokens = own.mean_map(np.ones(7))
        assert seen.mean.numpy() == pytest.approx(tokens, abs=1e-9)
        assert seen.grid == (1, len(tokens))
        if place.position is None:
            assert seen.correlation() == seen.variance_share() == (None, None, None)
            continue
        position = place.position.numpy()
        assert seen.position is not None
        assert seen.position.numpy() == pytest.approx(position[: len(tokens)])
        each = [corr(one, position) for one in own.maps]
        assert seen.correlation().value == pytest.approx(corr(tokens, position), abs=1e-9)
        assert seen.correlation_per_image().value == pytest.approx(np.mean(each), abs=1e-9)
        assert seen.variance_share().value == pytest.approx(share(own.maps, position), abs=1e-9)
        shares = [share([one for one, n in zip(own.maps, row, strict=True) for _ in range(int(n))], position)
                  for row in drawn]  # fmt: skip
        high = seen.variance_share().high
        assert high == pytest.approx(share(own.maps, position) + 1.959964 * np.std(shares, ddof=1), rel=1e-6)
        half = np.arctanh([np.average(each, weights=row) for row in drawn]).std(ddof=1) * 1.959964
        assert seen.correlation_per_image().high == pytest.approx(np.tanh(np.arctanh(np.mean(each)) + half), rel=1e-6)


def test_the_band_of_the_mean_maps_correlation_draws_sequences() -> None:
    model, items = small("text"), sequences("text", *(4, 9, 6, 8, 7, 9, 9, 5, 8, 9))
    recorder = record(model, batches(items, 10))
    drawn = torch.poisson(torch.ones(10, 100), generator=torch.Generator().manual_seed(0)).numpy().T
    own, seen, place = alone(model, items, model.blocks[2].norm1), recorder.blocks[2], recorder.places[2]
    assert place.position is not None
    position = place.position.numpy()
    scaled = np.arctanh([corr(own.mean_map(row), position) for row in drawn])
    value, low, high = seen.correlation()
    assert value is not None
    band = np.tanh(np.arctanh(value) + 1.959964 * scaled.std(ddof=1) * np.array([-1, 1]))
    assert [low, high] == pytest.approx(band.tolist(), rel=1e-6)


@KIND
@pytest.mark.parametrize("scheme", ["mpvg", "gap", "pvg_cls", "pvg_cls:last_norm=0"])
def test_what_is_read_out_is_each_sequences_own(kind: str, scheme: str) -> None:
    model, items = small(kind, scheme), sequences(kind, *LENGTHS)
    recorder = record(model, batches(items, 5, 2))
    own = [alone(model, items, model.norm, enters=True), alone(model, items, model.norm)]
    for seen, one in zip((recorder.before, recorder.after), own, strict=True):
        assert seen.mean.numpy() == pytest.approx(one.mean_map(np.ones(7)), abs=1e-9)
    last = model.positions().last
    read = recorder.read_out()
    assert read is not None
    if model.has_class_token:
        expected = [np.mean([rows[0] for rows in one.prefix], axis=0) for one in own]
        constant = None if last is None else last[0, 0].detach().numpy()
    else:
        expected = [np.mean([rows.mean(axis=0) for rows in one.maps], axis=0) for one in own]
        constant = None
        if last is not None:
            table = last[0].detach().numpy()
            constant = np.mean([table[: len(one)].mean(axis=0) for one in own[0].maps], axis=0)
    assert [vector.numpy() for vector in read[:2]] == [pytest.approx(vector, abs=1e-9) for vector in expected]
    assert (read[2] is None) == (constant is None)
    if read[2] is not None:
        assert read[2].numpy() == pytest.approx(constant, abs=1e-9)


def test_pooled_tokens_and_constant_are_what_the_head_reads() -> None:
    model, items = small("series"), sequences("series", *LENGTHS)
    recorder = record(model, batches(items, 7))
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(*batches(items, 7)[0])
    read = recorder.read_out()
    assert read is not None
    assert read[2] is not None
    torch.testing.assert_close(read[1] + read[2], seen[0].mean(dim=0))


@KIND
@pytest.mark.parametrize("scheme", ["mpvg", "lape"])
def test_padding_has_no_influence(kind: str, scheme: str) -> None:
    model, items = small(kind, scheme), sequences(kind, *(3, 11, 7, 5))
    (x, mask), = batches(items, 4)  # fmt: skip
    assert mask is not None
    expected = record(model, [(x, mask)], replicates=9)
    longer = torch.cat([x, x[:, :6]], dim=1)
    masked = torch.cat([mask, torch.zeros_like(mask[:, :6])], dim=1)
    garbage = [x.clone() for _ in range(3)]
    garbage[0][~mask] = 10 if kind == "text" else 10_000
    garbage[1][~mask] = 3 if kind == "text" else -10_000
    garbage[2][~mask] = 10**9 if kind == "text" else float("nan")
    for other in [(each, mask) for each in garbage] + [(longer, masked)]:
        assert same(record(model, [other], replicates=9), expected, within=1e-6)
    moved = x.clone()
    moved[0, :3] = x[0, :3].flip(0)
    assert not same(record(model, [(moved, mask)], replicates=9), expected, within=1e-3)


@KIND
def test_batches_and_masks_of_ones_make_no_difference(kind: str) -> None:
    model, items = small(kind), sequences(kind, *(4, 9, 9, 9, 9, 9))
    expected = record(model, batches(items, 6), replicates=0)
    apart = [
        (x, torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask) for x, mask in batches(items, 1, 2, 3)
    ]
    ways: list[list[Batch]] = [batches(items, 1, 5), batches(items, 2, 4), [*apart]]
    for given in ways:
        assert same(record(model, given, replicates=0), expected)


@pytest.mark.parametrize(("lengths", "rows"), [((2, 2, 5, 5), 5), ((2, 2, 2, 5), 2), ((1, 2, 3), 2), ((6,), 6)])
def test_rows_are_used_that_half_of_the_sequences_reach(lengths: tuple[int, ...], rows: int) -> None:
    model = small("text")
    recorder = record(model, batches(sequences("text", *lengths), len(lengths)))
    table = torch.arange(20.0)
    assert recorder.reached(table).tolist() == list(range(rows))
    assert all(seen.grid == (1, rows) and len(seen.mean) == rows for seen in recorder.blocks)
    assert recorder.blocks[1].correlation().value == pytest.approx(correlation_of(model, lengths), abs=1e-12)


def correlation_of(model: Any, lengths: tuple[int, ...]) -> float | None:
    return correlation_by_block(model, *batches(sequences("text", *lengths), len(lengths))[0])[1]


def test_a_token_is_real_where_any_of_its_steps_is() -> None:
    model = small("series")  # three steps a token
    recorder = record(model, batches(sequences("series", 3, 4, 7), 3))
    assert recorder.reach is not None
    assert recorder.reach.counts.tolist() == [3, 2, 1, 0, 0, 0, 0]
    x, mask = torch.ones(1, 8, 2, dtype=torch.float64), torch.ones(1, 8, dtype=torch.bool)
    mask[0, [0, 3, 4, 5]] = False  # steps of the first token, and all of the second
    recorder = record(model, [(x, mask)])
    assert recorder.reach is not None
    assert recorder.reach.counts.tolist() == [1, 0, 1, 0, 0, 0, 0]


@KIND
def test_sequences_of_one_length_are_recorded_as_images_are(kind: str) -> None:
    model, items = small(kind), sequences(kind, *([20] * 6))
    recorder = record(model, batches(items, 6))
    weights = torch.poisson(torch.ones(6, 100), generator=torch.Generator().manual_seed(0)).T
    for place, seen in zip(recorder.places, recorder.blocks, strict=True):
        as_images = MapStatistics(place.position, replicates=100)
        as_images.add(torch.from_numpy(np.stack(alone(model, items, place.norm).maps)), weights)
        torch.testing.assert_close(seen.mean, as_images.mean)
        for measure in ("correlation", "correlation_per_image", "variance_share"):
            estimates = getattr(seen, measure)(), getattr(as_images, measure)()
            assert estimates[0] == pytest.approx(estimates[1], abs=1e-5)  # replicates of images are in float32


@KIND
@pytest.mark.parametrize("scheme", ["mpvg", "gap_last"])
def test_a_folded_model_is_recorded_alike(kind: str, scheme: str) -> None:
    model, given = small(kind, scheme), batches(sequences(kind, *LENGTHS), 7)
    assert same(record(fold(model), given, replicates=9), record(model, given, replicates=9))


def test_correlations_of_a_batch_are_the_recorders() -> None:
    model, given = small("series"), batches(sequences("series", *LENGTHS), 7)
    recorder = record(model, given)
    found = correlation_by_block(model, *given[0])
    assert found == {block: recorder.blocks[block].correlation().value for block in (1, 2, 3)}
    assert correlation_by_block(small("text", "gap"), *batches(sequences("text", 5), 1)[0]) == {}


def test_float32_in_which_models_are_trained_gives_the_same_numbers() -> None:
    model, items = small("series"), sequences("series", *LENGTHS)
    expected = record(model, batches(items, 7), replicates=0)
    found = record(model.float(), batches([item.float() for item in items], 7), replicates=0)
    assert same(found, expected, within=1e-4)


def test_what_is_constant_is_undefined_and_a_single_sequence_has_no_band() -> None:
    reach = Reach(4, replicates=20)
    seen = SequenceStatistics(torch.eye(4, dtype=torch.float64), reach)
    weights = torch.ones(20, 2)
    reach.see(torch.tensor([[True, True, False], [True, True, True]]), weights)
    seen.add(torch.full((2, 3, 4), 0.3), weights)
    assert seen.correlation().value is seen.correlation_per_image().value is None
    assert seen.variance_share().value == pytest.approx(1)
    recorder = record(small("text"), batches(sequences("text", 6), 1))
    for estimate in (recorder.blocks[2].correlation(), recorder.blocks[2].variance_share()):
        assert estimate.value is not None
        assert estimate.low is estimate.high is None
    flat = SequenceStatistics(torch.ones(4, 4, dtype=torch.float64), reach)
    flat.add(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), weights)
    assert flat.correlation_per_image().value is None


def test_shares_of_variance_weight_rows_by_how_many_are_real() -> None:
    random = np.random.default_rng(0)
    mean, position = (torch.from_numpy(random.normal(size=(5, 3))) for _ in range(2))
    as_images = variance_share_of_moments(mean, 2.0, position)
    assert variance_share_of_rows(mean, 2.0, position, torch.full((5,), 7.0)) == pytest.approx(as_images)
    counts = torch.tensor([3, 3, 2, 1, 1])
    repeated = [values.repeat_interleave(counts, dim=0) for values in (mean, position)]
    expected = variance_share_of_moments(repeated[0], 2.0, repeated[1])
    assert variance_share_of_rows(mean, 2.0, position, counts) == pytest.approx(expected)
    assert expected != pytest.approx(as_images)


def test_activations_that_are_not_finite_name_the_block_and_the_sequences() -> None:
    model, items = small("series"), sequences("series", 6, 9, 5)
    items[2][1, 0] = float("inf")
    with pytest.raises(NonFiniteActivationsError, match=r"embedding .* sequences 2 to 2: the sequences themselves"):
        record(model, batches(items, 2, 1))
    model.blocks[2].mlp.fc2.bias.data[0] = float("nan")
    with pytest.raises(NonFiniteActivationsError, match=r"block 2 puts out .*its weights are at fault"):
        record(model, batches(items[:2], 2))


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (torch.zeros(2, 21, dtype=torch.int64), None, "sequences of 21 steps"),
        (torch.zeros(2, 5), None, "takes token ids"),
        (torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool), "mask of shape"),
        (torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.bool), "no real place"),
    ],
)
def test_what_is_no_batch_of_sequences_is_refused_before_it_is_counted(x: Tensor, mask: Any, message: str) -> None:
    with Recorder(small("text")) as recorder, pytest.raises(ValueError, match=message):
        recorder.run(x, mask)
    assert recorder.reach is not None
    assert recorder.reach.sequences == recorder.images == 0


@KIND
def test_the_causal_test_takes_masks(kind: str) -> None:
    model, items = small(kind), sequences(kind, *LENGTHS)
    with torch.no_grad():
        model.head.bias -= torch.stack([model(item[None])[0] for item in items]).mean(dim=0)
        own = torch.stack([model(item[None])[0].argmax() for item in items])
    plain = small(kind, "gap_last")
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        bare = torch.stack([plain(item[None])[0].argmax() for item in items])
    found = causal_test(model, zip(batches(items, 3, 4), (own[:3], own[3:]), strict=True))
    assert (found.images, found.accuracy) == (7, 1.0)
    removed = found.interventions[-1]
    assert (removed.name, removed.change) == ("all", "removed")
    assert removed.accuracy == pytest.approx((bare == own).double().mean().item())
    assert not torch.equal(bare, own)
