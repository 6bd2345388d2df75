"""The first half of a fit: a mixture over the descriptors by k-means and EM, and each sample's most probable modes.

Both are done without the held-out samples; every sample, held out or not, is then assigned to modes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gmtool.artifacts.gmm import DescriptorMixture, KeptModes
from gmtool.artifacts.latents import LatentsFile
from gmtool.distributed import World
from gmtool.errors import UserError
from gmtool.mixture.diagonal import DiagonalMixture, posterior
from gmtool.mixture.em import (
    Blocks,
    Fit,
    block_rows,
    em_iterations,
    label_moments,
    maximise,
    start_from_clusters,
)
from gmtool.mixture.kmeans import LARGEST, Centroids, label_points, lloyd, seed_centroids
from gmtool.progress import Progress
from gmtool.stages.fit_gmm.checkpoints import Checkpoints, InEm, InKMeans
from gmtool.stages.fit_gmm.plan import FitPlan
from gmtool.stages.fit_gmm.report import DescriptorMetrics, descriptor_metrics

ROWS_AT_ONCE = 1 << 14
"""Descriptors read and checked at a time."""


@dataclass(frozen=True, eq=False)
class DescriptorFit:
    """The mixture over descriptors, the modes that each sample keeps, and metrics of both."""

    mixture: DescriptorMixture
    kept: KeptModes
    metrics: DescriptorMetrics


def fit_descriptors(
    source: LatentsFile,
    plan: FitPlan,
    state: InKMeans | InEm | None,
    world: World,
    progress: Progress,
    checkpoints: Checkpoints,
) -> DescriptorFit:
    """k-means and EM from ``state`` on, the same in every process.

    Raises UserError when a descriptor is not finite, or too large for distances in float32.
    """
    order = np.argsort(plan.held, kind="stable")  # the fitted samples first
    data = _load_descriptors(source, plan.part[order])
    centre = data[: plan.fitted].mean(axis=0, dtype=np.float64).astype(np.float32)
    data -= centre
    if not isinstance(state, InEm):
        state = _start_of_em(data[: plan.fitted], plan, state, world, progress, checkpoints)
    state = _climb(data, plan, state, world, progress, checkpoints)
    own = posterior(_own_blocks(data, plan.modes, world), state.fit.mixture, plan.top_k)
    joined = _joined(world, vars(own))
    modes, probabilities, likelihood = (
        _unordered(joined[name].numpy(), order) for name in ("modes", "probabilities", "log_likelihood")
    )
    kept = KeptModes(modes, probabilities)
    weights, means, variances = (values.cpu().numpy() for values in vars(state.fit.mixture).values())
    return DescriptorFit(
        DescriptorMixture(weights, means + centre, variances),
        kept,
        descriptor_metrics(kept, plan.held, likelihood, state.fit, state.kmeans_iterations),
    )


def _load_descriptors(source: LatentsFile, rows: np.ndarray) -> np.ndarray:
    """Descriptors (N, D) float32, that of sample ``rows[i]`` of the file in row i."""
    data = np.empty((len(rows), source.descriptor_size), np.float32)
    places = np.argsort(rows)  # so that the file is read from start to end
    for start in range(0, len(data), ROWS_AT_ONCE):
        here = places[start : start + ROWS_AT_ONCE]
        block = source.descriptors(rows[here])
        broken = np.flatnonzero(~(np.abs(block) < LARGEST).all(axis=1))  # also those that are not finite
        if len(broken):
            first = broken[0]
            finite = np.isfinite(block[first]).all()
            what = f"has an entry of {np.abs(block[first]).max():.3g}" if finite else "is not finite"
            limit = f", beyond the {LARGEST:g} that distances allow" if finite else ""
            name = source.names()[rows[here[first]]]
            raise UserError(
                f"{source.path}: the descriptor of {name} {what}{limit}; encode again with --precision float32"
            )
        data[here] = block
    return data


def _unordered(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Rows back in the order of the file: row i of ``values`` is of sample ``order[i]``."""
    result = np.empty_like(values)
    result[order] = values
    return result


def _own_blocks(data: np.ndarray, modes: int, world: World) -> Blocks:
    """This process's part of data (n, D), whole blocks of them: EM's sums do not depend on the number of processes."""
    rows = block_rows(modes, world.device)
    share = world.share(math.ceil(len(data) / rows))
    return Blocks(data[share.start * rows : share.stop * rows], rows, world.device)


def _joined(world: World, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows of all processes one after another, everywhere, on the CPU."""
    parts = world.gather(own)
    return world.broadcast({name: torch.cat([part[name] for part in parts]) for name in own} if world.first else {})


def _start_of_em(
    data: np.ndarray,
    plan: FitPlan,
    state: InKMeans | None,
    world: World,
    progress: Progress,
    checkpoints: Checkpoints,
) -> InEm:
    """A mixture made of the clusters of the first process, for all."""
    tensors: dict[str, Tensor] = {}
    if world.first:
        seeds = Centroids(_seeds(data, plan, world.device, progress)) if state is None else state.clusters
        clusters = _cluster(data, plan, seeds, world.device, progress, checkpoints)
        mixture = _mixture_of(data, plan, clusters, world.device)
        tensors = {"iterations": torch.tensor(len(clusters.history)), **vars(mixture)}
    tensors = world.broadcast(tensors)
    iterations = int(tensors.pop("iterations"))
    return InEm(Fit(DiagonalMixture(**{name: tensor.to(world.device) for name, tensor in tensors.items()})), iterations)


def _seeds(data: np.ndarray, plan: FitPlan, device: torch.device, progress: Progress) -> np.ndarray:
    progress.begin("k-means++ seeds", plan.modes, "seeds")
    seeds = seed_centroids(data, plan.modes, seed=plan.config.seed, device=device, on_seed=progress.advance)
    progress.end()
    return seeds


def _cluster(
    data: np.ndarray,
    plan: FitPlan,
    start: Centroids,
    device: torch.device,
    progress: Progress,
    checkpoints: Checkpoints,
) -> Centroids:
    """k-means on centred descriptors (N, D)."""
    iterations, clusters = plan.config.kmeans.iterations, start
    progress.begin("k-means", iterations, "iterations", len(start.history))
    for clusters in lloyd(data, start, iterations=iterations, device=device):
        progress.advance(1, {"mean squared distance": clusters.history[-1]})
        checkpoints.save(InKMeans(clusters))
    progress.end()
    return clusters


def _mixture_of(data: np.ndarray, plan: FitPlan, clusters: Centroids, device: torch.device) -> DiagonalMixture:
    """Where EM starts, or without EM the clusters' own moments."""
    em = plan.config.em
    labels = torch.from_numpy(label_points(data, clusters.centroids, device=device)).to(device)
    moments = label_moments(Blocks(data, block_rows(plan.modes, device), device), labels, plan.modes)
    if em.iterations:
        return start_from_clusters(torch.from_numpy(clusters.centroids).to(device), moments, em.variance_floor)
    return maximise(moments, None, em.variance_floor)


def _climb(
    data: np.ndarray, plan: FitPlan, start: InEm, world: World, progress: Progress, checkpoints: Checkpoints
) -> InEm:
    """EM on centred descriptors (N, D), those held out last."""
    state = start
    progress.begin("EM", plan.config.em.iterations, "iterations", len(start.fit.history))
    for fit in em_iterations(
        _own_blocks(data[: plan.fitted], plan.modes, world),
        start.fit,
        plan.config.em,
        held_out=_own_blocks(data[plan.fitted :], plan.modes, world),
        total=world.sum,
    ):
        state = InEm(fit, start.kmeans_iterations)
        held_out = {"held-out": fit.held_out[-1]} if fit.held_out else {}
        progress.advance(1, {"log-likelihood": fit.history[-1], **held_out})
        checkpoints.save(state)
    progress.end()
    return state
