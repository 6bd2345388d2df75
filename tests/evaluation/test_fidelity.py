"""Metrics against closed forms, brute force, and the invariances that define them."""

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial.distance import cdist

from gmtool.evaluation import fidelity
from gmtool.evaluation.fidelity import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)

CPU = torch.device("cpu")


def normal(count: int, dim: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, scale, (count, dim))).float()


def rotation(dim: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return frechet_distance(feature_statistics(first), feature_statistics(second))


def test_statistics_equal_numpys_over_several_chunks(monkeypatch):
    monkeypatch.setattr(fidelity, "ROWS_AT_ONCE", 7)
    features = normal(50, 6, 0, shift=1000.0)
    found = feature_statistics(features)
    np.testing.assert_allclose(found.mean, features.double().numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-10)
    assert found.count == 50


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
    centred_1, centred_2 = ((each - each.mean(0)).double().numpy() for each in (first, second))
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


def test_kernel_distance_is_the_unbiased_mmd():
    first, second = normal(9, 4, 11), normal(9, 4, 12, shift=0.5)

    def kernel(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        return ((x.double() @ y.double().T).numpy() / 4 + 1) ** 3

    others = ~np.eye(9, dtype=bool)
    expected = kernel(first, first)[others].mean() + kernel(second, second)[others].mean()
    expected -= 2 * kernel(first, second).mean()
    found = kernel_distance(first, second, seed=0)
    assert found.value == pytest.approx(expected, rel=1e-10)
    assert found.spread == 0


def test_kernel_distance_is_near_zero_between_equal_distributions_and_grows_with_a_shift(monkeypatch):
    monkeypatch.setattr(fidelity, "KERNEL_SUBSETS", 10)
    first = normal(1500, 8, 13)
    values = [kernel_distance(first, normal(1200, 8, 14, shift=shift), seed=1).value for shift in (0, 0.3, 0.6)]
    assert abs(values[0]) < 0.02 < values[1] < values[2]


def test_the_seed_alone_decides_the_subsets():
    first, second = normal(40, 3, 15), normal(20, 3, 16)
    assert kernel_distance(first, second, 5) == kernel_distance(first, second, 5)
    assert kernel_distance(first, second, 5) != kernel_distance(first, second, 6)
    assert kernel_distance(first, second, 2**40).value == kernel_distance(first, second, 0).value


def test_precision_and_recall_by_brute_force(monkeypatch):
    monkeypatch.setattr(fidelity, "ROWS_AT_ONCE", 13)
    generated, reference = normal(50, 3, 17, scale=1.3).numpy(), normal(70, 3, 18).numpy()

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        radii = np.sort(cdist(centres, centres), axis=1)[:, 3]
        return float((cdist(points, centres) <= radii).any(axis=1).mean())

    found = precision_recall(torch.from_numpy(generated), torch.from_numpy(reference), 3, CPU)
    assert found.precision == pytest.approx(covered(generated, reference))
    assert found.recall == pytest.approx(covered(reference, generated))
    assert found.precision != found.recall


def test_precision_and_recall_of_equal_and_of_disjoint_sets():
    first = normal(40, 4, 19)
    same, apart = precision_recall(first, first, 3, CPU), precision_recall(first, first + 100, 3, CPU)
    assert (same.precision, same.recall) == (1, 1)
    assert (apart.precision, apart.recall) == (0, 0)


def test_collapse_costs_recall_and_junk_costs_precision():
    reference = torch.cat([normal(100, 4, 20, shift=-5), normal(100, 4, 21, shift=5)])
    collapsed = normal(200, 4, 22, shift=5)
    junk = torch.cat([normal(100, 4, 23, shift=-5), normal(100, 4, 24, shift=5), normal(200, 4, 25, shift=50)])
    assert precision_recall(collapsed, reference, 3, CPU).recall <= 0.5
    assert precision_recall(collapsed, reference, 3, CPU).precision > 0.8
    assert precision_recall(junk, reference, 3, CPU).precision <= 0.5
    assert precision_recall(junk, reference, 3, CPU).recall > 0.8


def test_a_tiny_set_uses_the_neighbours_it_has():
    found = precision_recall(normal(2, 3, 26), normal(3, 3, 27), 3, CPU)
    assert 0 <= found.precision <= 1 and 0 <= found.recall <= 1


def test_inception_score_lies_between_one_and_the_number_of_classes():
    classes = 8
    certain = torch.full((8000, classes), -40.0)
    certain[torch.arange(8000), torch.arange(8000) % classes] = 40.0
    assert inception_score(certain, 0).value == pytest.approx(classes, rel=1e-2)
    assert inception_score(torch.zeros(100, classes), 0).value == pytest.approx(1)
    assert inception_score(certain[:8], 0).value == pytest.approx(classes)  # too few to be split
