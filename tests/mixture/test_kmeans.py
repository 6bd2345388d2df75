import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.cluster import kmeans_plusplus as sklearn_plus_plus

from gmtool.mixture import kmeans as module
from gmtool.mixture.kmeans import kmeans, plus_plus, seed_centroids

CPU = torch.device("cpu")


def blobs(n: int, clusters: int, size: int, spread: float = 8.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = spread * rng.normal(size=(clusters, size))
    return (centres[rng.integers(clusters, size=n)] + rng.normal(size=(n, size))).astype(np.float32)


def inertia(points: np.ndarray, centroids: np.ndarray) -> float:
    return float(((points[:, None] - centroids[None]) ** 2).sum(-1).min(1).mean())


def test_lloyd_equals_scikit_learn_from_the_same_seeds() -> None:
    points = blobs(600, clusters=12, size=4, spread=2.0)
    seeds = seed_centroids(points, 12, seed=0, device=CPU)
    for iterations in (1, 3, 60):
        found = kmeans(points, seeds, iterations=iterations, device=CPU)
        reference = KMeans(12, init=seeds, n_init=1, max_iter=iterations, tol=0.0, algorithm="lloyd").fit(points)
        np.testing.assert_allclose(inertia(points, found.centroids), reference.inertia_ / 600, rtol=1e-4)
        if iterations < 60:
            np.testing.assert_allclose(found.centroids, reference.cluster_centers_, atol=1e-4)
    assert 3 < len(found.history) < 60
    assert min(-np.diff(found.history)) > -1e-6
    assert found.history[0] == pytest.approx(inertia(points, seeds), rel=1e-4)


def test_labels_are_the_nearest_centroids() -> None:
    points = blobs(300, clusters=5, size=3)
    found = kmeans(points, seed_centroids(points, 5, seed=1, device=CPU), iterations=20, device=CPU)
    nearest = ((points[:, None] - found.centroids[None]) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(found.labels, nearest)


def test_seeds_find_every_one_of_many_far_blobs() -> None:
    points = blobs(2000, clusters=40, size=8, spread=30.0)
    found = seed_centroids(points, 40, seed=0, device=CPU)
    # random seeds would miss a third of the blobs, each at a cost of thousands
    assert inertia(points, found) < 3 * 8


def test_seeds_are_as_good_as_scikit_learn_s() -> None:
    points = blobs(1500, clusters=60, size=6, spread=3.0)
    ours = [inertia(points, seed_centroids(points, 50, seed=each, device=CPU)) for each in range(8)]
    theirs = [inertia(points, sklearn_plus_plus(points, 50, random_state=each)[0]) for each in range(8)]
    random = [inertia(points, points[np.random.default_rng(each).choice(1500, 50)]) for each in range(8)]
    assert abs(np.mean(ours) - np.mean(theirs)) < 0.1 * np.mean(theirs)
    assert np.mean(ours) < 0.9 * np.mean(random)


def test_seeds_are_points_and_all_different() -> None:
    points = blobs(64, clusters=3, size=2)
    seeds = plus_plus(torch.from_numpy(points), 64, torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_array_equal(np.unique(seeds, axis=0), np.unique(points, axis=0))


def test_seeds_are_drawn_from_a_subset_of_many_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEED_POINTS", 50)
    monkeypatch.setattr(module, "SEED_POINTS_PER_CLUSTER", 2)
    points = blobs(1000, clusters=4, size=2)
    sizes = []
    original = module.plus_plus
    monkeypatch.setattr(module, "plus_plus", lambda x, *rest: sizes.append(len(x)) or original(x, *rest))
    seed_centroids(points, 4, seed=0, device=CPU)
    seed_centroids(points, 40, seed=0, device=CPU)
    assert sizes == [50, 80]


def test_identical_points_do_no_harm() -> None:
    points = np.ones((20, 3), np.float32)
    found = kmeans(points, seed_centroids(points, 4, seed=0, device=CPU), iterations=5, device=CPU)
    np.testing.assert_allclose(found.centroids, 1, rtol=1e-2)  # FAISS parts equal centroids by a little
    assert found.labels.shape == (20,)


def test_as_many_clusters_as_points() -> None:
    points = blobs(16, clusters=3, size=2)
    found = kmeans(points, seed_centroids(points, 16, seed=0, device=CPU), iterations=5, device=CPU)
    assert sorted(found.labels) == list(range(16))
    np.testing.assert_allclose(found.centroids[found.labels], points, rtol=1e-5)


def test_going_on_is_never_having_stopped() -> None:
    points = blobs(800, clusters=20, size=4, spread=1.0)
    heard: list[tuple[np.ndarray, tuple[float, ...]]] = []
    seeds = seed_centroids(points, 25, seed=0, device=CPU)
    whole = kmeans(points, seeds, iterations=12, device=CPU, on_iteration=lambda *news: heard.append(news))
    assert heard[-1][1] == whole.history
    for centroids, history in (heard[0], heard[5], heard[-1]):
        rest = kmeans(points, centroids, iterations=12, device=CPU, history=history)
        np.testing.assert_array_equal(rest.centroids, whole.centroids)
        np.testing.assert_array_equal(rest.labels, whole.labels)
        assert rest.history == whole.history


def test_seed_decides() -> None:
    points = blobs(500, clusters=10, size=4, spread=1.0)
    runs = [
        kmeans(points, seed_centroids(points, 10, seed=seed, device=CPU), iterations=10, device=CPU)
        for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(runs[0].centroids, runs[1].centroids)
    np.testing.assert_array_equal(runs[0].labels, runs[1].labels)
    assert not np.array_equal(runs[0].centroids, runs[2].centroids)


def test_an_emptied_cluster_is_placed_again() -> None:
    points = blobs(400, clusters=4, size=2)
    seeds = np.concatenate([points[:3], np.full((1, 2), 1e4, np.float32)])
    found = kmeans(points, seeds, iterations=20, device=CPU)
    assert set(found.labels.tolist()) == {0, 1, 2, 3}


def test_points_too_far_apart_for_float32_come_to_an_end() -> None:
    # their squared distances overflow, so that no comparison holds
    points = torch.from_numpy(blobs(64, clusters=3, size=2)) * 1e25
    assert plus_plus(points, 20, torch.Generator().manual_seed(0)).shape == (20, 2)


def test_equal_points_come_to_an_end() -> None:
    assert plus_plus(torch.ones(30, 4), 20, torch.Generator().manual_seed(0)).shape == (20, 4)
