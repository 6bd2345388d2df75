"""k-means: greedy k-means++ seeds (Arthur and Vassilvitskii 2007), then Lloyd's iterations by FAISS.

Random seeds, FAISS's own default, end in much worse optima than k-means++ when clusters are many. A seed is drawn
with probability proportional to the squared distance to the nearest earlier seed; the greedy form draws a few
candidates and keeps the one that leaves the smallest sum of squared distances. FAISS's own k-means++, which draws one
candidate per seed, leads EM to mixtures that are less likely by 0.06 nats per image.

Where FAISS is not installed, or has no GPU support on a GPU, Lloyd's iterations are done by PyTorch instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
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

LARGEST = 1e12
"""Coordinates are smaller than this: the squared distances of larger ones may be infinite in float32, at which FAISS
ends the process."""

DISTANCES, SPLIT = 1 << 26, 1 / 1024
"""Of the iterations in PyTorch: distances in memory at a time; the relative shift of each half of a split cluster."""


@dataclass(frozen=True, eq=False)
class Centroids:
    """centroids (K, D) float32, and the mean squared distance to the nearest one before each iteration."""

    centroids: np.ndarray
    history: tuple[float, ...] = ()

    @property
    def converged(self) -> bool:
        """Whether the last iteration changed next to nothing."""
        return len(self.history) > 1 and self.history[-2] - self.history[-1] <= SETTLED * self.history[-2]


@dataclass(frozen=True, eq=False)
class Clusters:
    """centroids and history as in `Centroids`; labels (N,) int64: the nearest centroid of each point."""

    centroids: np.ndarray
    labels: np.ndarray
    history: tuple[float, ...]


def seed_centroids(
    points: np.ndarray,
    clusters: int,
    *,
    seed: int,
    device: torch.device,
    subset: int = SEED_POINTS,
    subset_per_cluster: int = SEED_POINTS_PER_CLUSTER,
    on_seed: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """k-means++ seeds (clusters, D) float32 from a random subset of ``points`` (N, D) float32, N >= ``clusters``.

    The subset has ``subset`` points, or ``subset_per_cluster * clusters`` if that is more. ``on_seed`` is called once a
    seed.
    """
    generator = torch.Generator().manual_seed(seed)
    size = max(subset, subset_per_cluster * clusters)
    drawn = torch.randperm(len(points), generator=generator)[:size].sort().values
    return plus_plus(torch.from_numpy(points[drawn.numpy()]).to(device), clusters, generator, on_seed).cpu().numpy()


def kmeans(
    points: np.ndarray, seeds: np.ndarray, *, iterations: int, device: torch.device, use_faiss: bool = True
) -> Clusters:
    """The clusters of points (N, D) after at most ``iterations`` of Lloyd's iterations; see `lloyd`, `label_points`.

    It is for use as a library: `gmtool fit-gmm` takes the iterations one by one, to save its state between them.
    """
    steps = lloyd(points, Centroids(seeds), iterations=iterations, device=device, use_faiss=use_faiss)
    centroids = reduce(lambda _, step: step, steps, Centroids(seeds))
    labels = label_points(points, centroids.centroids, device=device, use_faiss=use_faiss)
    return Clusters(centroids.centroids, labels, centroids.history)


def lloyd(
    points: np.ndarray, start: Centroids, *, iterations: int, device: torch.device, use_faiss: bool = True
) -> Iterator[Centroids]:
    """Yield the centroids after each of Lloyd's iterations on ``points`` (N, D) float32, until they converge.

    iterations: at most, with those that ``start`` has behind it. All points take part in each (FAISS by itself would
    use 256 a cluster). A cluster that loses all its points is placed beside a big one. use_faiss: where it can be used.
    Raises ValueError for coordinates that are not below `LARGEST` in size.
    """
    if not (points.max(initial=0) < LARGEST and points.min(initial=0) > -LARGEST):
        raise ValueError(f"coordinates of points must be below {LARGEST:g} in size")
    index = _faiss_index(points.shape[1], device) if use_faiss else None
    state = start
    while len(state.history) < iterations and not state.converged:
        centroids, distance = (
            _torch_iteration(points, state.centroids, device)
            if index is None
            else _faiss_iteration(points, state.centroids, index)
        )
        state = Centroids(centroids, (*state.history, distance / len(points)))
        yield state


def label_points(
    points: np.ndarray, centroids: np.ndarray, *, device: torch.device, use_faiss: bool = True
) -> np.ndarray:
    """The number of the nearest centroid (K, D) of each of ``points`` (N, D), (N,) int64."""
    index = _faiss_index(points.shape[1], device) if use_faiss else None
    if index is None:
        return torch.cat([nearest.cpu() for _, _, nearest in _nearest(points, centroids, device)]).numpy()
    index.add(centroids)
    return index.search(points, 1)[1][:, 0]


def _faiss_index(size: int, device: torch.device) -> Any:
    """An exact nearest-neighbour index over ``size`` dimensions on a device; None where FAISS has none for it."""
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatL2(size)
    if device.type != "cuda":
        return index
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)


def _faiss_iteration(points: np.ndarray, centroids: np.ndarray, index: Any) -> tuple[np.ndarray, float]:
    """The next centroids (K, D), and the sum of squared distances to the present ones."""
    import faiss

    parameters = faiss.ClusteringParameters()
    parameters.niter = 1
    parameters.min_points_per_centroid, parameters.max_points_per_centroid = 1, len(points)
    clustering: Any = faiss.Clustering(centroids.shape[1], len(centroids), parameters)  # its type hints are wrong
    faiss.copy_array_to_vector(np.ascontiguousarray(centroids).ravel(), clustering.centroids)
    clustering.train(points, index)
    last = clustering.iteration_stats.at(clustering.iteration_stats.size() - 1)
    return faiss.vector_to_array(clustering.centroids).reshape(centroids.shape), last.obj


def _torch_iteration(points: np.ndarray, centroids: np.ndarray, device: torch.device) -> tuple[np.ndarray, float]:
    """Lloyd's iterations in PyTorch."""
    sums = torch.zeros(centroids.shape, dtype=torch.float64, device=device)
    counts = torch.zeros(len(centroids), dtype=torch.int64, device=device)
    distance = 0.0
    for x, squared, nearest in _nearest(points, centroids, device):
        sums.index_add_(0, nearest, x.double())
        counts += torch.bincount(nearest, minlength=len(counts))
        distance += float(squared.sum(dtype=torch.float64))
    moved = sums / counts.clamp_min(1)[:, None]
    empty, filled = (counts == 0).nonzero()[:, 0], int(counts.count_nonzero())
    if len(empty):
        large = counts.argsort(descending=True, stable=True)[torch.arange(len(empty), device=device) % filled]
        apart = SPLIT * (1 - 2 * (torch.arange(moved.shape[1], device=device) % 2))
        moved[empty], moved[large] = moved[large] * (1 + apart), moved[large] * (1 - apart)
    return moved.float().cpu().numpy(), distance


def _nearest(
    points: np.ndarray, centroids: np.ndarray, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of points (B, D), their squared distances (B,) to the nearest centroids, and the numbers (B,) of these."""
    centres = torch.from_numpy(centroids).to(device)
    norms = centres.square().sum(1)
    rows = max(1, DISTANCES // len(centres))
    for start in range(0, len(points), rows):
        x = torch.from_numpy(points[start : start + rows]).to(device)
        least, nearest = torch.addmm(norms, x, centres.T, alpha=-2.0).min(1)
        yield x, (least + x.square().sum(1)).clamp_min_(0.0), nearest


def plus_plus(
    points: Tensor, clusters: int, generator: torch.Generator, on_seed: Callable[[], None] = lambda: None
) -> Tensor:
    """Greedy k-means++ seeds (clusters, D) from ``points`` (n, D), with 2 + log K candidates per seed.

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
