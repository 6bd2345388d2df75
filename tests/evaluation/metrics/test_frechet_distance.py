"""The Fréchet distance against closed forms, torch-fidelity's, and the invariances that define it."""

import numpy as np
import pytest
import scipy.linalg
import torch
from points import normal
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from gmtool.evaluation.features import FeatureStatistics, feature_statistics
from gmtool.evaluation.metrics.frechet_distance import covariance_root, frechet_distance


def rotation(dim: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return frechet_distance(feature_statistics(first), feature_statistics(second))


@pytest.mark.parametrize("dim", [1, 5])
def test_frechet_distance_of_commuting_gaussians(dim):
    rng = np.random.default_rng(1)
    turn, mean_1, mean_2 = rotation(dim), rng.normal(size=dim), rng.normal(size=dim)
    std_1, std_2 = rng.uniform(0.1, 2, dim), rng.uniform(0.1, 2, dim)
    first = FeatureStatistics(mean_1, turn @ np.diag(std_1**2) @ turn.T)
    second = FeatureStatistics(mean_2, turn @ np.diag(std_2**2) @ turn.T)
    expected = ((mean_1 - mean_2) ** 2).sum() + ((std_1 - std_2) ** 2).sum()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_general_gaussians_by_matrix_square_root():
    first, second = (
        feature_statistics(normal(40, 6, 2)),
        feature_statistics(normal(30, 6, 3, shift=0.3) @ normal(6, 6, 4)),
    )
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
    expected = ((first.mean - second.mean) ** 2).sum() + np.trace(first.covariance + second.covariance - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_with_fewer_features_than_dimensions():
    first, second = normal(12, 40, 5), normal(9, 40, 6)
    centred_1, centred_2 = ((statistics - statistics.mean(0)).double().numpy() for statistics in (first, second))
    fidelity_term = np.linalg.svd(centred_1 @ centred_2.T / np.sqrt(11 * 8), compute_uv=False).sum()
    expected = (
        ((first.double().mean(0) - second.double().mean(0)) ** 2).sum().item()
        + (centred_1**2).sum() / 11
        + (centred_2**2).sum() / 8
        - 2 * fidelity_term
    )
    assert distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_zero_for_the_same_set_symmetric_and_blind_to_rigid_motion():
    first, second = normal(60, 5, 7), normal(80, 5, 8, scale=1.5)
    turn, move = torch.from_numpy(rotation(5)).float(), torch.arange(5.0)
    assert distance(first, first) == pytest.approx(0, abs=1e-8)
    assert distance(first, second) == pytest.approx(distance(second, first), rel=1e-9)
    assert distance(first @ turn + move, second @ turn + move) == pytest.approx(distance(first, second), rel=1e-4)


def test_a_shift_adds_its_squared_length_to_the_frechet_distance():
    first, second = feature_statistics(normal(60, 5, 9)), feature_statistics(normal(60, 5, 10))
    centred = FeatureStatistics(first.mean, second.covariance)
    values = [
        frechet_distance(first, FeatureStatistics(first.mean + shift, second.covariance))
        for shift in (0.0, 0.5, 1.0, 2.0)
    ]
    np.testing.assert_allclose(values, frechet_distance(first, centred) + 5 * np.square([0, 0.5, 1, 2]), rtol=1e-9)


@pytest.mark.parametrize(("count", "others", "dim"), [(400, 300, 32), (2000, 3000, 64)])
def test_frechet_distance_is_torch_fidelitys(count, others, dim):
    mixing = normal(dim, dim, 30, scale=dim**-0.5)
    first, second = (
        feature_statistics(features) for features in (normal(count, dim, 31), normal(others, dim, 32) @ mixing)
    )
    theirs = fid_statistics_to_metric(
        *({"mu": features.mean, "sigma": features.covariance} for features in (first, second)), verbose=False
    )
    assert frechet_distance(first, second) == pytest.approx(theirs[KEY_METRIC_FID], rel=1e-10)


def test_the_same_set_is_at_no_distance_also_where_it_does_not_span_the_features():
    """Where eigenvalues of a product of covariances lose half the digits."""
    first = normal(20, 300, 33)
    assert distance(first, first) == pytest.approx(0, abs=1e-10)
    assert distance(first, torch.cat([first, first])) < 2 * float(first.var(0).sum()) / 20


@pytest.mark.parametrize("rank", [0, 1, 3, 8])
def test_the_root_gives_back_its_covariance(rank):
    factor = np.random.default_rng(34).normal(size=(8, rank))
    root = covariance_root(factor @ factor.T)
    assert root.shape == (8, rank)
    np.testing.assert_allclose(root @ root.T, factor @ factor.T, atol=1e-12)


@pytest.mark.parametrize(
    ("matrix", "message"), [(np.diag([1.0, -0.1]), "negative eigenvalue"), (np.array([[1, 0.5], [0, 1]]), "symmetric")]
)
def test_what_is_no_covariance_is_refused(matrix, message):
    right = FeatureStatistics(np.zeros(2), np.eye(2))
    for pair in ((right, FeatureStatistics(np.zeros(2), matrix)), (FeatureStatistics(np.zeros(2), matrix), right)):
        with pytest.raises(ValueError, match=message):
            frechet_distance(*pair)


def test_a_covariance_that_was_rounded_to_float32_is_one():
    statistics = feature_statistics(normal(50, 100, 35))  # singular, so that rounding makes eigenvalues negative
    rounded = FeatureStatistics(statistics.mean, statistics.covariance.astype(np.float32).astype(np.float64))
    assert np.linalg.eigvalsh(rounded.covariance).min() < 0
    assert frechet_distance(rounded, statistics) == pytest.approx(0, abs=1e-3)
