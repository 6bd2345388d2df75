"""What came out of a fit, in figures that its manifest keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gmtool.artifacts.gmm import Assignments
from gmtool.mixture.em import Fit
from gmtool.mixture.patch_moments import Distance, Distances

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
"""Of the modes' populations, in the report."""


@dataclass(frozen=True)
class DescriptorFigures:
    """Of the mixture over descriptors; log-likelihoods are means over images, in nats.

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
class FitFigures(DescriptorFigures):
    """And of the patches: the mean over images of `gmtool.mixture.patch_moments.Distances`."""

    distances: Distances


def descriptor_figures(
    kept: Assignments, held_out: np.ndarray, log_likelihood: np.ndarray, fit: Fit, kmeans_iterations: int
) -> DescriptorFigures:
    """Figures from all data's kept modes, whether they are held out (N,), and their log-likelihood (N,)."""
    modes, size = fit.mixture.means.shape
    population = kept.population(modes)
    return DescriptorFigures(
        modes=modes,
        populated=int((population > 0).sum()),
        population=tuple(float(each) for each in np.quantile(population, QUANTILES)),
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


def with_distances(found: DescriptorFigures, kept: Assignments, distances: Sequence[Distances]) -> FitFigures:
    """Add the distances of all modes, in their order, as the mean over data."""
    mean = np.average(np.array(distances), axis=0, weights=kept.population(found.modes))
    return FitFigures(**vars(found), distances=distances_from_json(mean.tolist()))


def descriptor_figures_from_json(values: Mapping[str, Any]) -> DescriptorFigures:
    """The figures that ``dataclasses.asdict`` turned into JSON values. Raises TypeError or KeyError for others."""
    names = {each.name for each in fields(DescriptorFigures)}
    tuples = ("population", "history", "held_out_history")
    found: dict[str, Any] = {name: tuple(values[name]) if name in tuples else values[name] for name in names}
    return DescriptorFigures(**found)


def figures_from_json(values: Mapping[str, Any]) -> FitFigures:
    """The same of all figures."""
    return FitFigures(**vars(descriptor_figures_from_json(values)), distances=distances_from_json(values["distances"]))


def distances_from_json(values: Sequence[Sequence[float]]) -> Distances:
    """The same of distances."""
    return Distances(*(Distance(*each) for each in values))
