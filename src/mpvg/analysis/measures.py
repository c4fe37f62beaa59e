"""Measures of tokens and positions, as plain functions of arrays; None where a measure is undefined, never NaN.

All compute in float64. A map (N, D) has a row for each token; both papers' maps leave prefix tokens out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CONSTANT = 1e-12  # a spread this small beside the values' size is rounding


def correlation(tokens: Tensor, position: Tensor) -> float | None:
    """Return Pearson's correlation of two maps, flattened; None where one is constant and it is undefined.

        r = sum (t - mean t)(d - mean d) / sqrt(sum (t - mean t)^2 sum (d - mean d)^2)      sums over the N D entries

    Args:
        tokens: Map (N, D), the batch mean of LN_l(x_l).
        position: Map (N, D), d_l.

    Returns:
        A number from -1 to 1; -1 where tokens = -position.

    Source:
        MPVG, figures 2 and 4. Assumption: over the flattened map, the batch mean taken first.
    """
    a, b = _flat(tokens), _flat(position)
    return None if _is_constant(a) or _is_constant(b) else cosine_similarity(a - a.mean(), b - b.mean())


def cosine_similarity(a: Tensor, b: Tensor) -> float | None:
    """Return the cosine of the angle between two arrays, flattened; None where one is all zeros.

        cos = <a, b> / (|a| |b|)

    Args:
        a: Any shape; for MPVG's figure 6 the mean over tokens (D,) before the Last LN.
        b: The same shape; after it.

    Returns:
        A number from -1 to 1.

    Source:
        MPVG, figure 6.
    """
    a, b = _flat(a), _flat(b)
    norms = a.norm() * b.norm()
    return None if norms == 0 else float((a @ b / norms).clamp(-1, 1))


def variance_share(tokens: Tensor, position: Tensor) -> float | None:
    """Return the share of the variance of the attention's input t + d that the position d carries.

        share = Cov(d, t + d) / Var(t + d) = 1 - Cov(t, t + d) / Var(t + d)       over images, tokens and dimensions

    Shares of tokens and position sum to one. It equals Var(d) / (Var(t) + Var(d)) where the two are uncorrelated; it
    is below that, and can be negative, where tokens counterbalance the position.

    Args:
        tokens: LN_l(x_l) as map (N, D), or of several images (B, N, D).
        position: Map (N, D), d_l.

    Returns:
        The share; None where t + d is constant.

    Source:
        Ours: the covariance decomposition of a sum's variance.
    """
    tokens = tokens.detach().double()
    maps = tokens if tokens.dim() == 3 else tokens[None]
    return variance_share_of_moments(maps.mean(dim=0), float(maps.var(correction=0)), position)


def variance_share_of_moments(mean: Tensor, variance: float, position: Tensor) -> float | None:
    """Return `variance_share` of tokens of which two moments are known.

    Args:
        mean: The tokens' mean over images (N, D).
        variance: Their variance over images, tokens and dimensions.
        position: Map (N, D).

    Returns:
        As `variance_share`.

    Source:
        Cov(t, d) needs the mean map alone, because d is the same for every image.
    """
    t, d = _flat(mean), _flat(position)
    of_position = float(d.var(correction=0))
    covariance = float(((t - t.mean()) * (d - d.mean())).mean())
    return _share(variance, covariance, of_position, float(t.square().mean() + d.square().mean()))


def variance_share_of_rows(mean: Tensor, variance: float, position: Tensor, counts: Tensor) -> float | None:
    """Return `variance_share` of tokens of sequences that differ in length: over all real tokens and dimensions.

    Args:
        mean: The mean (N, D) over the sequences that are real in each row.
        variance: The variance of all real tokens' entries.
        position: Map (N, D).
        counts: How many sequences are real in each row (N,), more than none.

    Returns:
        As `variance_share`, which it equals where all counts do.

    Source:
        As `variance_share_of_moments`, each row weighted by its count.
    """
    t, d = mean.detach().double(), position.detach().double()
    weights = (counts.double() / (counts.sum() * t.shape[1])).unsqueeze(1)
    of_t, of_d = t - (weights * t).sum(), d - (weights * d).sum()
    covariance, of_position = float((weights * of_t * of_d).sum()), float((weights * of_d.square()).sum())
    return _share(variance, covariance, of_position, float((weights * (t.square() + d.square())).sum()))


def _share(variance: float, covariance: float, of_position: float, squares: float) -> float | None:
    of_input = variance + 2 * covariance + of_position
    rounding = _CONSTANT * squares
    if of_input <= _CONSTANT * max(variance + of_position, rounding):
        return None
    return (of_position + covariance) / of_input


def effective_rank(table: Tensor) -> float | None:
    """Return how many directions a table spans, weighted by how much it uses them; None for a table of zeros.

        exp(-sum p_i log p_i)   with p_i = sigma_i / sum sigma,  sigma the table's singular values

    Args:
        table: Map (N, D), such as d_l.

    Returns:
        A number from 1 to min(N, D).

    Source:
        Roy and Vetterli, "The effective rank", EUSIPCO 2007; ours for delivered positions.
    """
    sigma = torch.linalg.svdvals(table.detach().double())
    if not sigma.sum() > 0:
        return None
    p = sigma / sigma.sum()
    return float(torch.special.entr(p).sum().exp())


def position_similarity(table: Tensor) -> Tensor | None:
    """Return the cosine similarity of every position with every other; None where some row is all zeros.

        S_nm = <d_n, d_m> / (|d_n| |d_m|)

    Args:
        table: Map (N, D), such as d_l.

    Returns:
        Matrix (N, N) in float64 with ones on the diagonal.

    Source:
        LaPE, the figures of position correlation by layer.
    """
    rows = table.detach().double()
    norms = rows.norm(dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        return None
    rows = rows / norms
    return (rows @ rows.T).clamp(-1, 1)


@dataclass(frozen=True)
class LastNormStatistics:
    """Measures around the Last LN; None where undefined, or where there is no beta or no position.

    Args:
        var_beta: Var(beta) over its D entries.
        var_beta_and_constant: Var(beta + c). Comparable between PVG and MPVG, as var_beta alone is not: under MPVG
            beta and the bias within c move alike, so beta has half of what training moves, and c the mean of the
            normalised table besides.
        cosine: Of what is read out before and after the Last LN, without its position.
        cosine_with_position: The same with the position in what comes after.
        correlation_before: Of x_L and LN'(s).
        correlation_after: Of LN(x_L) and LN'(s).
        cosine_beta_constant: Of beta and c.
    """

    var_beta: float | None
    var_beta_and_constant: float | None
    cosine: float | None
    cosine_with_position: float | None
    correlation_before: float | None
    correlation_after: float | None
    cosine_beta_constant: float | None


def last_norm_statistics(
    before: Tensor,
    after: Tensor,
    *,
    beta: Tensor | None = None,
    position: Tensor | None = None,
    readout: tuple[Tensor, Tensor] | None = None,
    constant: Tensor | None = None,
) -> LastNormStatistics:
    """Return the papers' measures of the Last LN, and ours.

        var(beta) = mean (beta - mean beta)^2        c = mean_n LN'(s)_n
        cosine    = cos(mean_n x_n, mean_n LN(x)_n), or of the class token's rows where that is read out

    Args:
        before: Mean over images of x_L, (N, D), patch tokens only.
        after: Mean over images of LN(x_L), (N, D), without the position.
        beta: The norm's bias (D,).
        position: LN'(s) (N, D), what the scheme adds after the norm.
        readout: The vectors (D,) that are read out before and after the norm; by default the means over the tokens.
        constant: c (D,), what the position adds to the second; by default its mean over the tokens.

    Returns:
        The measures.

    Source:
        MPVG, figure 6 (var(beta), cosine) and figure 8 (correlations). Assumptions: over the batch mean of the maps;
        the variance divides by D; cosine both without and with the position, as the paper does not say which.
    """
    start, end = (before.double().mean(dim=0), after.double().mean(dim=0)) if readout is None else readout
    if constant is None and position is not None:
        constant = position.mean(dim=0)
    constant = None if constant is None else constant.detach().double()
    beta = None if beta is None else beta.detach().double()
    both = None if beta is None else beta if constant is None else beta + constant
    return LastNormStatistics(
        var_beta=None if beta is None else float(beta.var(correction=0)),
        var_beta_and_constant=None if both is None else float(both.var(correction=0)),
        cosine=cosine_similarity(start, end),
        cosine_with_position=None if constant is None else cosine_similarity(start, end.double() + constant),
        correlation_before=None if position is None else correlation(before, position),
        correlation_after=None if position is None else correlation(after, position),
        cosine_beta_constant=None if beta is None or constant is None else cosine_similarity(beta, constant),
    )


def _flat(values: Tensor) -> Tensor:
    return values.detach().double().flatten()


def _is_constant(values: Tensor) -> bool:
    return bool((values - values.mean()).norm() <= _CONSTANT * values.norm())
