"""Mean and variance of arrays seen piece by piece, exact whatever the pieces.

A set of ``count`` samples is summarised by its mean and by ``m2 = sum_i (x_i - mean)^2``, elementwise. Two summaries
merge by the pairwise formula of Chan, Golub & LeVeque (Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances, 1979)::

    delta = mean_b - mean_a
    mean  = mean_a + delta * n_b / n
    m2    = m2_a + m2_b + delta^2 * n_a * n_b / n

which subtracts no large numbers from each other, unlike ``E[x^2] - E[x]^2``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class RunningMoments:
    """count: samples seen. mean, m2: float64, of one sample's shape."""

    count: int
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> RunningMoments:
        """The moments of no sample of this shape."""
        return cls(0, np.zeros(shape), np.zeros(shape))

    @classmethod
    def of(cls, batch: np.ndarray) -> RunningMoments:
        """The moments of a batch (B, ...) of samples, B >= 1."""
        values = np.asarray(batch, dtype=np.float64)
        mean = values.mean(axis=0)
        return cls(len(values), mean, np.square(values - mean).sum(axis=0))

    def merge(self, other: RunningMoments) -> RunningMoments:
        """The moments of both sets of samples together."""
        count = self.count + other.count
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        delta = other.mean - self.mean
        return RunningMoments(
            count,
            self.mean + delta * (other.count / count),
            self.m2 + other.m2 + np.square(delta) * (self.count * other.count / count),
        )

    def update(self, batch: np.ndarray) -> RunningMoments:
        """The moments with a batch (B, ...) of further samples; B may be 0."""
        return self.merge(RunningMoments.of(batch)) if len(batch) else self

    @property
    def variance(self) -> np.ndarray:
        """Population variance ``m2 / count``, float64."""
        return self.m2 / max(self.count, 1)
