"""Running statistics of maps of sequences, whose rows are real up to each one's own length; padding joins no sum."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mpvg.analysis.map_statistics import estimate
from mpvg.analysis.measures import correlation, variance_share_of_rows
from mpvg.analysis.results import Estimate

_CONSTANT = 1e-10  # a sequence's variance this small beside its squares is the model's rounding


class Reach:
    """Which rows of the maps are real, in the batch at hand and in how many of all sequences.

    Args:
        rows: Rows N of the position table.
        replicates: Number R of bootstrap replicates; 0 for no bands.
    """

    def __init__(self, rows: int, *, replicates: int) -> None:
        self.rows = rows
        self.replicates = replicates
        self.sequences = 0
        self.real: Tensor  # of the batch at hand (B, n)
        self.counts: Tensor  # of all sequences, how many are real in each row (N,)
        self.resampled: Tensor  # the same in each replicate (R, N)
        self._shares: Tensor

    def see(self, real: Tensor, weights: Tensor) -> None:
        """Take in a batch, before its maps.

        Args:
            real: Which rows are real (B, n), n up to N.
            weights: How often each sequence counts in each replicate (R, B).
        """
        if not self.sequences:
            self.counts = real.new_zeros(self.rows, dtype=torch.float64)
            self.resampled = real.new_zeros(self.replicates, self.rows, dtype=torch.float64)
            self._shares = torch.zeros_like(self.counts)
        self.sequences += len(real)
        self.real = real
        flags, reached = real.double(), real.shape[1]
        self.counts[:reached] += flags.sum(dim=0)
        self.resampled[:, :reached] += weights.double() @ flags
        self._shares[:reached] += (flags / flags.sum(dim=1, keepdim=True)).sum(dim=0)

    @property
    def used(self) -> Tensor:
        """The rows (N,) that at least half of the sequences reach."""
        return 2 * self.counts >= self.sequences

    @property
    def shares(self) -> Tensor:
        """The part (N,) that each row has in the mean over a sequence's tokens, averaged over the sequences."""
        return self._shares / self.sequences


class SequenceStatistics:
    """Running sums over sequences of maps (n, D), and how each goes along with a fixed position; all in float64.

    Assumption: a row of the mean map is the mean over the sequences that are real there, and only rows that at least
    half of the sequences reach are used, for the map and its correlation with the position. Each sequence's own
    correlation and the share of variance are over all real tokens.

    Args:
        position: d (N, D); without one only means are kept.
        reach: Which rows are real; it sees each batch before these statistics do.
    """

    def __init__(self, position: Tensor | None, reach: Reach) -> None:
        self.reach = reach
        self.images = 0
        self._position = position
        self._total: Tensor
        self._read: Tensor
        self._sums: Tensor
        self._resampled: Tensor
        self._resampled_sums: Tensor

    def add(self, maps: Tensor, weights: Tensor) -> None:
        """Take in a batch.

        Args:
            maps: Of each sequence (B, n, D), what stands in padded rows being of no matter.
            weights: How often each sequence counts in each replicate (R, B).
        """
        padded = ~self.reach.real.unsqueeze(2)
        maps = maps.double().masked_fill(padded, 0.0)
        count, reached, width = maps.shape
        if not self.images:
            self._begin(maps)
        self.images += count
        self._total[:reached] += maps.sum(dim=0)
        tokens = self.reach.real.double().sum(dim=1)
        self._read += (maps.sum(dim=1) / tokens.unsqueeze(1)).sum(dim=0)
        if self._position is None:
            return
        entries = tokens * width
        mean = maps.sum(dim=(1, 2)) / entries
        centred = (maps - mean[:, None, None]).masked_fill(padded, 0.0)
        spread = centred.square().sum(dim=(1, 2))
        position = (self._position - self._position.mean())[:reached]
        along = centred.flatten(1) @ position.flatten()
        rows = self.reach.real.double() @ torch.stack([position.sum(dim=1), position.square().sum(dim=1)], dim=1)
        of_position = rows[:, 1] - rows[:, 0].square() / entries
        defined = spread > _CONSTANT * (spread + entries * mean.square())
        defined &= of_position > _CONSTANT * rows[:, 1]
        correlations = (along / (spread * of_position).sqrt()).where(defined, along.new_zeros(()))
        squares = spread + entries * mean.square()
        sums = torch.stack([entries, mean * entries, squares, defined.double(), correlations])
        self._sums += sums.sum(dim=1)
        self._resampled[:, :reached] += (weights.double() @ maps.flatten(1)).unflatten(1, (reached, width))
        self._resampled_sums += weights.double() @ sums.T

    def _begin(self, maps: Tensor) -> None:
        width, replicates = maps.shape[2], self.reach.replicates
        self._total, self._read = maps.new_zeros(self.reach.rows, width), maps.new_zeros(width)
        if self._position is not None:
            self._sums = maps.new_zeros(5)
            self._resampled = maps.new_zeros(replicates, self.reach.rows, width)
            self._resampled_sums = maps.new_zeros(replicates, 5)

    @property
    def grid(self) -> tuple[int, int]:
        """One row of the tokens that are used."""
        return 1, int(self.reach.used.sum())

    @property
    def position(self) -> Tensor | None:
        """The position (M, D) where it is used."""
        return None if self._position is None else self._position[self.reach.used]

    @property
    def mean(self) -> Tensor:
        """The mean map (M, D) over the sequences that are real in each row, the rows that are used."""
        used = self.reach.used
        return self._total[used] / self.reach.counts[used].unsqueeze(1)

    @property
    def read_out(self) -> Tensor:
        """The mean (D,) over all sequences of the mean over each one's tokens."""
        return self._read / self.images

    def correlation(self) -> Estimate:
        """Return the correlation of the mean map and the position, with its band."""
        if self.position is None:
            return Estimate(None)
        replicates = [self._correlation(*drawn[:2], self.reach.used & (drawn[1] > 0)) for drawn in self._replicates()]
        return estimate(correlation(self.mean, self.position), replicates, of_correlations=True)

    def correlation_per_image(self) -> Estimate:
        """Return the mean of the sequences' own correlations with the position, with its band."""
        if self.position is None:
            return Estimate(None)
        of_all, *replicates = [_average(sums) for sums in (self._sums, *(drawn[2] for drawn in self._replicates()))]
        return estimate(of_all, replicates, of_correlations=True)

    def variance_share(self) -> Estimate:
        """Return the position's share of the variance of tokens + position, with its band."""
        if self.position is None:
            return Estimate(None)
        replicates = [self._variance_share(*drawn) for drawn in self._replicates()]
        return estimate(self._variance_share(self._total, self.reach.counts, self._sums), replicates)

    def _replicates(self) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Yield of each replicate with a sequence the sums of maps (N, D), the rows' counts (N,) and the other sums."""
        if self.images < 2:
            return
        for total, counts, sums in zip(self._resampled, self.reach.resampled, self._resampled_sums, strict=True):
            if sums[0] > 0:
                yield total, counts, sums

    def _correlation(self, total: Tensor, counts: Tensor, rows: Tensor) -> float | None:
        assert self._position is not None
        return correlation(total[rows] / counts[rows].unsqueeze(1), self._position[rows]) if rows.any() else None

    def _variance_share(self, total: Tensor, counts: Tensor, sums: Tensor) -> float | None:
        assert self._position is not None
        rows = counts > 0
        mean, mean_square = sums[1:3] / sums[0]
        variance = float((mean_square - mean.square()).clamp(min=0))
        means = total[rows] / counts[rows].unsqueeze(1)
        return variance_share_of_rows(means, variance, self._position[rows], counts[rows])


def _average(sums: Tensor) -> float | None:
    """Return the mean of the correlations that are defined."""
    return float(sums[4] / sums[3]) if sums[3] > 0 else None
