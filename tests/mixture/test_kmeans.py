import sys

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.cluster import kmeans_plusplus as sklearn_plus_plus

from gmtool.mixture.kmeans import Centroids, kmeans, label_points, lloyd, plus_plus, seed_centroids

CPU = torch.device("cpu")


def blobs(n: int, clusters: int, size: int, spread: float = 8.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = spread * rng.normal(size=(clusters, size))
    return (centres[rng.integers(clusters, size=n)] + rng.normal(size=(n, size))).astype(np.float32)


def inertia(points: np.ndarray, centroids: np.ndarray) -> float:
    return float(((points[:, None] - centroids[None]) ** 2).sum(-1).min(1).mean())


@pytest.mark.parametrize("use_faiss", [True, False])
def test_lloyd_equals_scikit_learn_from_the_same_seeds(use_faiss: bool) -> None:
    points = blobs(600, clusters=12, size=4, spread=2.0)
    seeds = seed_centroids(points, 12, seed=0, device=CPU)
    for iterations in (1, 3, 60):
        clusters = kmeans(points, seeds, iterations=iterations, device=CPU, use_faiss=use_faiss)
        reference = KMeans(12, init=seeds, n_init=1, max_iter=iterations, tol=0.0, algorithm="lloyd").fit(points)
        np.testing.assert_allclose(inertia(points, clusters.centroids), reference.inertia_ / 600, rtol=1e-4)
        if iterations < 60:
            np.testing.assert_allclose(clusters.centroids, reference.cluster_centers_, atol=1e-4)
    assert 3 < len(clusters.history) < 60
    assert min(-np.diff(clusters.history)) > -1e-6
    assert clusters.history[0] == pytest.approx(inertia(points, seeds), rel=1e-4)


@pytest.mark.parametrize("use_faiss", [True, False])
def test_labels_are_the_nearest_centroids(use_faiss: bool) -> None:
    points = blobs(300, clusters=5, size=3)
    seeds = seed_centroids(points, 5, seed=1, device=CPU)
    clusters = kmeans(points, seeds, iterations=20, device=CPU, use_faiss=use_faiss)
    nearest = ((points[:, None] - clusters.centroids[None]) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(clusters.labels, nearest)


def test_seeds_find_every_one_of_many_far_blobs() -> None:
    points = blobs(2000, clusters=40, size=8, spread=30.0)
    seeds = seed_centroids(points, 40, seed=0, device=CPU)
    # random seeds would miss a third of the blobs, each at a cost of thousands
    assert inertia(points, seeds) < 3 * 8


def test_seeds_are_as_good_as_scikit_learn_s() -> None:
    points = blobs(1500, clusters=60, size=6, spread=3.0)
    ours = [inertia(points, seed_centroids(points, 50, seed=index, device=CPU)) for index in range(8)]
    theirs = [inertia(points, sklearn_plus_plus(points, 50, random_state=index)[0]) for index in range(8)]
    random = [inertia(points, points[np.random.default_rng(index).choice(1500, 50)]) for index in range(8)]
    assert abs(np.mean(ours) - np.mean(theirs)) < 0.1 * np.mean(theirs)
    assert np.mean(ours) < 0.9 * np.mean(random)


def test_seeds_are_points_and_all_different() -> None:
    points = blobs(64, clusters=3, size=2)
    seeds = plus_plus(torch.from_numpy(points), 64, torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_array_equal(np.unique(seeds, axis=0), np.unique(points, axis=0))


def test_without_faiss_the_clusters_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    points = blobs(2000, clusters=30, size=8, spread=1.0)
    seeds = seed_centroids(points, 20, seed=0, device=CPU)
    with_faiss = kmeans(points, seeds, iterations=8, device=CPU)
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if it were not installed
    without = kmeans(points, seeds, iterations=8, device=CPU)
    assert without.history == pytest.approx(with_faiss.history, rel=1e-5)
    np.testing.assert_allclose(without.centroids, with_faiss.centroids, atol=1e-4)
    assert (without.labels == with_faiss.labels).mean() > 0.999


@pytest.mark.parametrize("value", [1e20, 3e38, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("use_faiss", [True, False])
def test_points_beyond_the_range_of_distances_are_refused(value: float, use_faiss: bool) -> None:
    """FAISS would end the process."""
    points = blobs(60, clusters=3, size=4)
    points[17, 2] = value
    with pytest.raises(ValueError, match="must be below 1e\\+12 in size"):
        kmeans(points, points[:3], iterations=2, device=CPU, use_faiss=use_faiss)


def test_seeds_are_drawn_from_a_subset_of_many_points() -> None:
    points = blobs(1000, clusters=4, size=2)
    subset = points[torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:50].numpy()]
    for clusters, per_cluster in ((50, 1), (25, 2)):
        seeds = seed_centroids(points, clusters, seed=0, device=CPU, subset=40, subset_per_cluster=per_cluster)
        assert len(np.unique(seeds, axis=0)) == clusters
        assert {tuple(seed) for seed in seeds} <= {tuple(point) for point in subset}


@pytest.mark.parametrize("use_faiss", [True, False])
def test_identical_points_do_no_harm(use_faiss: bool) -> None:
    points = np.ones((20, 3), np.float32)
    seeds = seed_centroids(points, 4, seed=0, device=CPU)
    clusters = kmeans(points, seeds, iterations=5, device=CPU, use_faiss=use_faiss)
    np.testing.assert_allclose(clusters.centroids, 1, rtol=1e-2)  # equal centroids are set apart by a little
    assert clusters.labels.shape == (20,)


def test_as_many_clusters_as_points() -> None:
    points = blobs(16, clusters=3, size=2)
    clusters = kmeans(points, seed_centroids(points, 16, seed=0, device=CPU), iterations=5, device=CPU)
    assert sorted(clusters.labels) == list(range(16))
    np.testing.assert_allclose(clusters.centroids[clusters.labels], points, rtol=1e-5)


@pytest.mark.parametrize("use_faiss", [True, False])
def test_resuming_is_never_having_stopped(use_faiss: bool) -> None:
    points = blobs(800, clusters=20, size=4, spread=1.0)
    start = Centroids(seed_centroids(points, 25, seed=0, device=CPU))
    steps = list(lloyd(points, start, iterations=12, device=CPU, use_faiss=use_faiss))
    for stopped in (steps[0], steps[5], steps[-2]):
        *_, last = lloyd(points, stopped, iterations=12, device=CPU, use_faiss=use_faiss)
        np.testing.assert_array_equal(last.centroids, steps[-1].centroids)
        assert last.history == steps[-1].history
    assert not list(lloyd(points, steps[-1], iterations=len(steps), device=CPU, use_faiss=use_faiss))
    whole = kmeans(points, start.centroids, iterations=12, device=CPU, use_faiss=use_faiss)
    labels = label_points(points, steps[-1].centroids, device=CPU, use_faiss=use_faiss)
    np.testing.assert_array_equal(whole.labels, labels)


def test_seed_decides() -> None:
    points = blobs(500, clusters=10, size=4, spread=1.0)
    runs = [
        kmeans(points, seed_centroids(points, 10, seed=seed, device=CPU), iterations=10, device=CPU)
        for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(runs[0].centroids, runs[1].centroids)
    np.testing.assert_array_equal(runs[0].labels, runs[1].labels)
    assert not np.array_equal(runs[0].centroids, runs[2].centroids)


@pytest.mark.parametrize("use_faiss", [True, False])
def test_an_emptied_cluster_is_placed_again(use_faiss: bool) -> None:
    points = blobs(400, clusters=4, size=2)
    seeds = np.concatenate([points[:3], np.full((1, 2), 1e4, np.float32)])
    clusters = kmeans(points, seeds, iterations=20, device=CPU, use_faiss=use_faiss)
    assert set(clusters.labels.tolist()) == {0, 1, 2, 3}


def test_points_too_far_apart_for_float32_come_to_an_end() -> None:
    # their squared distances overflow, so that no comparison holds
    points = torch.from_numpy(blobs(64, clusters=3, size=2)) * 1e25
    assert plus_plus(points, 20, torch.Generator().manual_seed(0)).shape == (20, 2)


def test_equal_points_come_to_an_end() -> None:
    assert plus_plus(torch.ones(30, 4), 20, torch.Generator().manual_seed(0)).shape == (20, 4)
