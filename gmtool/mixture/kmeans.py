"""k-means: greedy k-means++ seeds (Arthur and Vassilvitskii 2007), then Lloyd's iterations by FAISS.

Random seeds, FAISS's own default, end in much worse optima than k-means++ when clusters are many. A seed is drawn
with probability proportional to the squared distance to the nearest earlier seed; the greedy form draws a few
candidates and takes the one that leaves the smallest sum of squared distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEED_POINTS, SEED_POINTS_PER_CLUSTER = 1 << 13, 32
"""Seeds are drawn from a random subset of so many points, or so many times the number of clusters, if that is more."""

AHEAD, PLACED_PER_AHEAD = 8, 16
"""Candidates are drawn for so many seeds at once, one for each so many that are placed: the fewer there are, the more
one more changes the distances, and the more of the others' candidates would be drawn in vain."""

SETTLED = 1e-5
"""Lloyd's iterations stop when the sum of squared distances falls by less than this share of itself."""


@dataclass(frozen=True)
class Clusters:
    """centroids (K, D) float32; labels (N,) int64, each point's nearest centroid.

    history: the mean squared distance to the centroids before each iteration.
    """

    centroids: np.ndarray
    labels: np.ndarray
    history: tuple[float, ...]


def seed_centroids(
    points: np.ndarray, clusters: int, *, seed: int, device: torch.device, on_seed: Callable[[], None] = lambda: None
) -> np.ndarray:
    """k-means++ seeds (clusters, D) float32 from a random subset of ``points`` (N, D) float32, N >= ``clusters``."""
    generator = torch.Generator().manual_seed(seed)
    size = max(SEED_POINTS, SEED_POINTS_PER_CLUSTER * clusters)
    subset = torch.randperm(len(points), generator=generator)[:size].sort().values
    return plus_plus(torch.from_numpy(points[subset.numpy()]).to(device), clusters, generator, on_seed).cpu().numpy()


def kmeans(
    points: np.ndarray,
    seeds: np.ndarray,
    *,
    iterations: int,
    device: torch.device,
    history: tuple[float, ...] = (),
    on_iteration: Callable[[np.ndarray, tuple[float, ...]], None] = lambda *_: None,
) -> Clusters:
    """Lloyd's iterations on ``points`` (N, D) float32 from ``seeds`` (K, D) float32, N >= K.

    All points take part in every iteration (FAISS by itself would take 256 a cluster). A cluster that loses all its
    points is placed again beside a big one. history: of iterations done earlier, which count, and whose centroids the
    seeds are. ``on_iteration`` hears centroids and history after each.
    """
    import faiss

    clusters, size = seeds.shape
    parameters = faiss.ClusteringParameters()
    parameters.niter = 1  # a call is one iteration, so that each can be reported
    parameters.min_points_per_centroid, parameters.max_points_per_centroid = 1, len(points)
    index = _flat_index(size, device)
    centroids = np.ascontiguousarray(seeds)
    while len(history) < iterations and not _settled(history):
        clustering: Any = faiss.Clustering(size, clusters, parameters)  # its type hints are wrong
        faiss.copy_array_to_vector(centroids.ravel(), clustering.centroids)
        clustering.train(points, index)
        centroids = faiss.vector_to_array(clustering.centroids).reshape(clusters, size)
        history = (*history, clustering.iteration_stats.at(clustering.iteration_stats.size() - 1).obj / len(points))
        on_iteration(centroids, history)
    index.reset()
    index.add(centroids)
    return Clusters(centroids, index.search(points, 1)[1][:, 0], history)


def _settled(history: tuple[float, ...]) -> bool:
    return len(history) > 1 and history[-2] - history[-1] <= SETTLED * history[-2]


def plus_plus(
    points: Tensor, clusters: int, generator: torch.Generator, on_seed: Callable[[], None] = lambda: None
) -> Tensor:
    """Greedy k-means++ seeds (clusters, D) from ``points`` (n, D), with 2 + log K candidates a seed.

    Candidates of several seeds are drawn, and their distances taken, in one pass over the points. Those that were drawn
    before a seed was placed are kept with probability (squared distance now) / (squared distance then), which makes
    them draws of now; when fewer than half are, new ones are drawn. ``generator`` is the CPU's, so that every device
    draws alike.
    """
    trials = 2 + int(math.log(clusters))
    norms = points.square().sum(1)
    first = int(torch.randint(len(points), (), generator=generator))
    chosen = [first]
    nearest = _squared_distances(points, norms, torch.tensor([first], device=points.device))[0]
    on_seed()
    while len(chosen) < clusters:
        ahead = min(AHEAD, 1 + len(chosen) // PLACED_PER_AHEAD, clusters - len(chosen))
        draws, kept = torch.rand(2, ahead, trials, generator=generator, dtype=torch.float64).to(points.device)
        cumulative = nearest.double().cumsum(0)
        candidates = torch.searchsorted(cumulative, draws * cumulative[-1], right=True).clamp_(max=len(points) - 1)
        distances = _squared_distances(points, norms, candidates.flatten()).unflatten(0, candidates.shape)
        then = nearest[candidates]
        for own, squared, chance in zip(candidates, distances, kept * then, strict=True):
            # written so that numbers that are not finite are kept: every round places a seed, whatever the points
            among = (~(chance > nearest[own])).nonzero()[:, 0]
            if 2 * len(among) < trials:
                break  # better draw again than choose among few
            left = torch.minimum(squared[among], nearest)
            best = left.sum(1, dtype=torch.float64).argmin()
            nearest = left[best].clone()  # a view would keep the other candidates' rows alive
            chosen.append(int(own[among[best]]))
            on_seed()
    return points[torch.tensor(chosen, device=points.device)]


def _squared_distances(points: Tensor, norms: Tensor, candidates: Tensor) -> Tensor:
    """Squared distances (c, n) of points (n, D), of squared norms (n,), to the points numbered ``candidates`` (c,)."""
    squared = torch.addmm(norms, points[candidates], points.T, alpha=-2.0).add_(norms[candidates, None])
    squared[torch.arange(len(candidates), device=points.device), candidates] = 0.0
    return squared.clamp_min_(0.0)


def _flat_index(size: int, device: torch.device) -> Any:
    """An exact nearest-neighbour index over ``size`` dimensions on a device."""
    import faiss

    index = faiss.IndexFlatL2(size)
    if device.type != "cuda":
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)
