"""Fréchet distance: squared 2-Wasserstein distance of the Gaussians with the means and covariances of two sets.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)),

which is FID if the features are Inception's. With S = F F^T, tr (S1 S2)^(1/2) is the sum of the singular values of F1^T
F2. Unlike square roots of the eigenvalues of S1 S2, it is exact to rounding for covariances of deficient rank, such as
those of fewer images than features. Source: Heusel et al. 2017, arXiv 1706.08500.
"""

from __future__ import annotations

import numpy as np

from gmtool.evaluation.features import FeatureStatistics
from gmtool.evaluation.metric import Context, Pair
from gmtool.evaluation.report import Measurement


def measure(known: Pair[FeatureStatistics], _: Context) -> tuple[Measurement]:
    """See `gmtool.evaluation.metric.Measure`."""
    distance = frechet_distance(known.images, known.reference)
    return (Measurement(distance, None, known.images.count, known.reference.count),)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """The Fréchet distance in squared feature units, at least 0; see the module.

    first, second: means (D,) and covariances (D, D), float64.
    Raises ValueError as `covariance_root` does.
    """
    shift = first.mean - second.mean
    roots = [covariance_root(statistics.covariance) for statistics in (first, second)]
    common = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    spread = np.trace(first.covariance) + np.trace(second.covariance) - 2 * common
    return max(0.0, float(shift @ shift + spread))


def covariance_root(covariance: np.ndarray, tolerance: float = 1e-5) -> np.ndarray:
    """F (D, rank) with F F^T = S.

    covariance: S (D, D).
    tolerance: how asymmetric S may be, relative to its largest entry, and how negative an eigenvalue, relative to the
    largest one; the default allows for statistics that were stored as float32.
    Raises ValueError where S exceeds the tolerance and hence is no covariance.
    """
    largest = np.abs(covariance).max(initial=0)
    if np.abs(covariance - covariance.T).max(initial=0) > tolerance * largest:
        raise ValueError("it is not symmetric")
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    largest = np.abs(values).max(initial=0)
    if values.min(initial=0) < -tolerance * largest:
        raise ValueError(f"it has a negative eigenvalue, {values.min():.4g}")
    kept = values > len(values) * np.finfo(np.float64).eps * largest
    return vectors[:, kept] * np.sqrt(values[kept])
