"""Running statistics of maps over images: sums in float64, and more under random weights, for bands over images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mpvg.analysis.measures import correlation, variance_share_of_moments
from mpvg.analysis.results import Estimate
from mpvg.stats import bootstrap_interval

_TOGETHER = 32  # images summed in float32 before they join the sum in float64, which is several times slower
_CONSTANT = 1e-10  # an image's variance this small beside its squares is rounding in float32


class Statistics(Protocol):
    """What is known of maps over samples: here of images, in `mpvg.analysis.sequence_statistics` of sequences."""

    images: int

    @property
    def grid(self) -> tuple[int, int] | None: ...
    @property
    def position(self) -> Tensor | None: ...
    @property
    def mean(self) -> Tensor: ...
    def add(self, maps: Tensor, weights: Tensor) -> None: ...
    def correlation(self) -> Estimate: ...
    def correlation_per_image(self) -> Estimate: ...
    def variance_share(self) -> Estimate: ...


class MapStatistics:
    """Running sums over images of maps (N, D), and how each goes along with a fixed position.

    Args:
        position: d (N, D); without one only the mean is kept.
        replicates: Number R of bootstrap replicates; 0 for no bands.
    """

    def __init__(self, position: Tensor | None, *, replicates: int = 0) -> None:
        self.position = position
        self.replicates = replicates if position is not None else 0
        self.grid: tuple[int, int] | None = None
        self.images = 0
        self._total: Tensor | None = None

    def add(self, maps: Tensor, weights: Tensor) -> None:
        """Take in a batch.

        Args:
            maps: Of each image (B, N, D) or (B, H, W, D).
            weights: How often each image counts in each replicate, (R, B).
        """
        if maps.dim() == 4:
            self.grid = (maps.shape[1], maps.shape[2])
            maps = maps.flatten(1, 2)
        if self._total is None:
            self._begin(maps)
        assert self._total is not None
        self.images += len(maps)
        for part in maps.split(_TOGETHER):
            self._total += part.sum(dim=0)
        if self.position is None:
            return
        rows = maps.flatten(1)
        mean = rows.mean(dim=1, keepdim=True)
        centred = rows - mean  # first, as float32 has no digits to lose
        variance = torch.linalg.vector_norm(centred, dim=1).double().square() / rows.shape[1]
        along = (centred @ self._direction).double()
        mean = mean[:, 0].double()
        defined = variance > _CONSTANT * (variance + mean.square())
        spread = (variance * rows.shape[1]).sqrt().where(defined, variance.new_ones(()))
        correlations = (along / spread).where(defined, variance.new_zeros(()))
        sums = torch.stack([torch.ones_like(mean), mean, mean.square(), variance, defined.double(), correlations])
        self._sums += sums.sum(dim=1)
        if self.replicates:
            self._resampled.addmm_(weights.to(rows), rows)
            self._resampled_sums += weights.double() @ sums.T

    def _begin(self, maps: Tensor) -> None:
        shape = maps.shape[1:]
        self._total = maps.new_zeros(shape, dtype=torch.float64)
        if self.position is None:
            return
        if self.position.shape != shape:
            raise ValueError(
                f"images that give maps of {shape[0]} x {shape[1]} meet a position of {self.position.shape[0]} x "
                f"{self.position.shape[1]}: analyse a model at the image size that it is built for."
            )
        direction = (self.position - self.position.mean()).flatten()
        self._direction = (direction / direction.norm().clamp(min=1e-300)).to(maps)
        self._sums = maps.new_zeros(6, dtype=torch.float64)
        self._resampled = maps.new_zeros(self.replicates, maps[0].numel())
        self._resampled_sums = maps.new_zeros(self.replicates, 6, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """The mean map (N, D) in float64."""
        assert self._total is not None
        return self._total / self.images

    def correlation(self) -> Estimate:
        """Return the correlation of the mean map and the position, with its band."""
        if self.position is None:
            return Estimate(None)
        position = self.position
        replicates = [correlation(mean, position) for mean, _ in self._replicates()]
        return estimate(correlation(self.mean, position), replicates, of_correlations=True)

    def correlation_per_image(self) -> Estimate:
        """Return the mean of the images' own correlations with the position, with its band."""
        if self.position is None or correlation(self.position, self.position) is None:
            return Estimate(None)
        of_all, *replicates = [
            float(total / count) if count > 0 else None
            for *_, count, total in [self._sums, *(self._resampled_sums if self.images > 1 else [])]
        ]
        return estimate(of_all, replicates, of_correlations=True)

    def variance_share(self) -> Estimate:
        """Return the position's share of the variance of tokens + position, with its band."""
        if self.position is None:
            return Estimate(None)
        position = self.position
        replicates = [variance_share_of_moments(mean, variance, position) for mean, variance in self._replicates()]
        return estimate(variance_share_of_moments(self.mean, _variance(self._sums), position), replicates)

    def _replicates(self) -> Iterable[tuple[Tensor, float]]:
        """Yield the mean map and the variance over images, tokens and dimensions of each replicate with an image."""
        assert self.position is not None
        if self.images < 2:
            return
        for total, sums in zip(self._resampled, self._resampled_sums, strict=True):
            if sums[0] > 0:
                yield (total.double() / sums[0]).view_as(self.position), _variance(sums)


def _variance(sums: Tensor) -> float:
    """Return the variance of all entries: the mean of the images' variances, and the variance of their means."""
    mean, mean_square, variance = sums[1:4] / sums[0]
    return float(variance + (mean_square - mean.square()).clamp(min=0))


def estimate(value: float | None, replicates: Sequence[float | None], *, of_correlations: bool = False) -> Estimate:
    """Return a measure with the 95 % band that its bootstrap replicates give, where two or more are defined."""
    defined = [replicate for replicate in replicates if replicate is not None]
    if value is None or len(defined) < 2:
        return Estimate(value)
    return Estimate(*bootstrap_interval(value, defined, of_correlations=of_correlations))
