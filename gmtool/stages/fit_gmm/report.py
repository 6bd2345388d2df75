"""Metrics of a fit, which its manifest keeps, and what `gmtool fit-gmm` reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.artifacts.gmm import KeptModes
from gmtool.mixture.em import Fit
from gmtool.mixture.patch_moments import Distance, Distances

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
"""Quantiles of the modes' populations in the report."""


@dataclass(frozen=True)
class DescriptorMetrics:
    """Metrics of the mixture over descriptors; log-likelihoods are means over images, in nats.

    population: its `QUANTILES` over modes, in images. populated: modes that at least one image keeps. history,
    held_out_history: log-likelihood of the fitted and of the held-out images before each iteration of EM.
    """

    modes: int
    populated: int
    population: tuple[float, ...]
    data: int
    held_out: int
    descriptor_size: int
    log_likelihood: float
    held_out_log_likelihood: float | None
    kmeans_iterations: int
    em_iterations: int
    converged: bool
    history: tuple[float, ...]
    held_out_history: tuple[float, ...]


@dataclass(frozen=True)
class FitMetrics(DescriptorMetrics):
    """And of the modes in patch space: the mean over images of `gmtool.mixture.patch_moments.Distances`."""

    distances: Distances


@dataclass(frozen=True)
class FitReport:
    """The file, its picture, its metrics, whether it was there already (of the same data and settings), seconds."""

    path: Path
    picture: Path
    metrics: FitMetrics
    reused: bool
    seconds: float


def descriptor_metrics(
    kept: KeptModes, held_out: np.ndarray, log_likelihood: np.ndarray, fit: Fit, kmeans_iterations: int
) -> DescriptorMetrics:
    """Metrics from all samples' kept modes, whether they are held out (N,), and their log-likelihood (N,)."""
    modes, size = fit.mixture.means.shape
    population = kept.population(modes)
    return DescriptorMetrics(
        modes=modes,
        populated=int((population > 0).sum()),
        population=tuple(float(quantile) for quantile in np.quantile(population, QUANTILES)),
        data=len(held_out),
        held_out=int(held_out.sum()),
        descriptor_size=size,
        log_likelihood=float(log_likelihood[~held_out].mean()),
        held_out_log_likelihood=float(log_likelihood[held_out].mean()) if held_out.any() else None,
        kmeans_iterations=kmeans_iterations,
        em_iterations=len(fit.history),
        converged=fit.converged,
        history=fit.history,
        held_out_history=fit.held_out,
    )


def with_distances(metrics: DescriptorMetrics, kept: KeptModes, distances: np.ndarray) -> FitMetrics:
    """Add the distances (K, 3, 2) of all modes, in their order, as the mean over samples."""
    mean = np.average(distances, axis=0, weights=kept.population(metrics.modes))
    return FitMetrics(**vars(metrics), distances=distances_from_json(mean.tolist()))


def descriptor_metrics_from_json(values: Mapping[str, Any]) -> DescriptorMetrics:
    """The metrics of the values that ``dataclasses.asdict`` gives. Raises TypeError or KeyError for others."""
    names = {field.name for field in fields(DescriptorMetrics)}
    tuples = ("population", "history", "held_out_history")
    arguments: dict[str, Any] = {name: tuple(values[name]) if name in tuples else values[name] for name in names}
    return DescriptorMetrics(**arguments)


def metrics_from_json(values: Mapping[str, Any]) -> FitMetrics:
    """All metrics of such values. Raises TypeError or KeyError for others."""
    return FitMetrics(**vars(descriptor_metrics_from_json(values)), distances=distances_from_json(values["distances"]))


def distances_from_json(values: Sequence[Sequence[float]]) -> Distances:
    """Distances of nested lists of numbers, as JSON has them. Raises TypeError for others."""
    return Distances(*(Distance(*pair) for pair in values))
