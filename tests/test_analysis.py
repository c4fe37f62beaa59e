"""The measures: against NumPy, SciPy and scikit-learn, and on cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cosine
from sklearn.metrics.pairwise import cosine_similarity as sklearn_similarity

from helpers import images
from mpvg.analysis.measures import (
    correlation,
    cosine_similarity,
    effective_rank,
    last_norm_statistics,
    position_similarity,
    variance_share,
)
from mpvg.stats import bootstrap_interval

A, B = images(5, 7, seed=1), images(5, 7, seed=2)
CONSTANT = torch.full_like(A, 0.1)


def test_correlation_of_known_maps() -> None:
    assert correlation(A, -A) == pytest.approx(-1)
    assert correlation(A, 2 * A + 3) == pytest.approx(1)
    assert correlation(A, B) == pytest.approx(stats.pearsonr(A.double().flatten(), B.double().flatten())[0], abs=1e-12)
    assert correlation(torch.tensor([[1.0, -1], [1, -1]]), torch.tensor([[1.0, 1], [-1, -1]])) == 0


@pytest.mark.parametrize(("a", "b"), [(A, CONSTANT), (CONSTANT, A), (CONSTANT, CONSTANT), (A, torch.zeros_like(A))])
def test_correlation_with_a_constant_is_undefined(a: torch.Tensor, b: torch.Tensor) -> None:
    assert correlation(a, b) is None


@given(scale=st.floats(1e-6, 1e6), shift=st.floats(-1e3, 1e3), seed=st.integers(0, 99))
def test_correlation_ignores_scale_and_shift(scale: float, shift: float, seed: int) -> None:
    a, b = images(4, 6, seed=seed, dtype=torch.float64), images(4, 6, seed=seed + 100, dtype=torch.float64)
    own = correlation(a, b)
    assert own is not None
    assert -1 <= own <= 1
    assert correlation(a, -scale * (b + shift)) == pytest.approx(-own, abs=1e-6)
    assert cosine_similarity(a, scale * b) == pytest.approx(cosine_similarity(a, b), abs=1e-9)


def test_cosine_similarity_of_known_vectors() -> None:
    assert cosine_similarity(A, B) == pytest.approx(1 - cosine(A.flatten().double(), B.flatten().double()), abs=1e-12)
    assert cosine_similarity(torch.tensor([1.0, 0]), torch.tensor([1.0, 1])) == pytest.approx(0.5**0.5)
    assert cosine_similarity(A, torch.zeros_like(A)) is None


def test_variance_share_of_uncorrelated_parts_is_the_part_of_the_variance() -> None:
    tokens, position = torch.tensor([[1.0, -1], [1, -1]]), torch.tensor([[2.0, 2], [-2, -2]])
    assert variance_share(tokens, position) == pytest.approx(4 / 5)
    assert variance_share(tokens, torch.zeros_like(tokens)) == 0
    assert variance_share(torch.full_like(tokens, 3.0), position) == pytest.approx(1)


def test_variance_share_where_tokens_counterbalance_the_position() -> None:
    assert variance_share(-A, A) is None  # nothing varies in what attention reads
    assert variance_share(-A / 2, A) == pytest.approx(2)  # tokens take half of it back
    assert variance_share(-2 * A, A) == pytest.approx(-1)  # what is left goes against the position
    assert variance_share(CONSTANT, CONSTANT) is None


def test_variance_share_over_images_is_numpys() -> None:
    tokens, position = images(6, 5, 7, seed=3).double().numpy(), B.double().numpy()
    read = tokens + position
    spread = np.broadcast_to(position, read.shape)
    expected = np.cov(spread.ravel(), read.ravel(), ddof=0)[0, 1] / read.var()
    assert variance_share(torch.from_numpy(tokens), B) == pytest.approx(expected, abs=1e-12)
    of_tokens = np.cov(tokens.ravel(), read.ravel(), ddof=0)[0, 1] / read.var()
    assert expected + of_tokens == pytest.approx(1)


def test_effective_rank_of_known_tables() -> None:
    assert effective_rank(3 * torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.outer(torch.arange(1.0, 6), torch.arange(1.0, 8))) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.diag(torch.tensor([1.0, 1, 0, 0]))) == pytest.approx(2)
    sigma = np.linalg.svd(A.double().numpy(), compute_uv=False)
    assert effective_rank(A) == pytest.approx(np.exp(stats.entropy(sigma)), abs=1e-9)
    assert effective_rank(torch.zeros(3, 4)) is None


def test_position_similarity_of_known_tables() -> None:
    found = position_similarity(A)
    assert found is not None
    np.testing.assert_allclose(found, sklearn_similarity(A.double()), atol=1e-12)
    orthogonal = position_similarity(torch.diag(torch.tensor([1.0, 5, -2])))
    assert orthogonal is not None
    assert torch.equal(orthogonal, torch.eye(3, dtype=torch.float64))
    assert position_similarity(torch.tensor([[1.0, 2], [0, 0]])) is None


def test_last_norm_statistics_are_numpys() -> None:
    beta, position = images(7, seed=4), images(5, 7, seed=5)
    found = last_norm_statistics(A, B, beta=beta, position=position)
    a, b, d = (part.double().numpy() for part in (A, B, position))
    c = d.mean(axis=0)
    expected = {
        "var_beta": beta.double().numpy().var(),
        "var_beta_and_constant": (beta.double().numpy() + c).var(),
        "cosine": 1 - cosine(a.mean(axis=0), b.mean(axis=0)),
        "cosine_with_position": 1 - cosine(a.mean(axis=0), (b + d).mean(axis=0)),
        "correlation_before": np.corrcoef(a.ravel(), d.ravel())[0, 1],
        "correlation_after": np.corrcoef(b.ravel(), d.ravel())[0, 1],
        "cosine_beta_constant": 1 - cosine(beta.double().numpy(), c),
    }
    assert vars(found) == pytest.approx(expected)


def test_last_norm_statistics_of_a_class_token_and_of_a_norm_without_bias() -> None:
    before, after, constant = images(7, seed=6), images(7, seed=7), images(7, seed=8)
    found = last_norm_statistics(A, B, position=images(5, 7, seed=5), readout=(before, after), constant=constant)
    assert found.cosine == cosine_similarity(before, after)
    assert found.cosine_with_position == pytest.approx(cosine_similarity(before, after + constant), abs=1e-6)
    assert found.var_beta is found.var_beta_and_constant is found.cosine_beta_constant is None
    plain = last_norm_statistics(A, B, beta=torch.ones(7))
    assert plain.var_beta == plain.var_beta_and_constant == 0
    assert plain.correlation_before is plain.cosine_with_position is None


def test_bootstrap_interval_is_normal_and_keeps_correlations_within_their_range() -> None:
    replicates = [0.1, 0.2, 0.4]
    low, high = stats.norm.interval(0.95, loc=0.25, scale=np.std(replicates, ddof=1))
    assert tuple(bootstrap_interval(0.25, replicates)) == pytest.approx((0.25, low, high))
    value, low, high = bootstrap_interval(-0.999, [-0.998, -0.9999, -0.9], of_correlations=True)
    assert low is not None
    assert high is not None
    assert -1 <= low < value == -0.999 < high < 1
