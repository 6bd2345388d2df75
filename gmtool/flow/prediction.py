"""What a model tells a solver at one point, and the two kinds of model that solvers integrate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gmtool.mixture.gaussian_mixture import GaussianFactor, GaussianMixture, IsotropicGaussian

TINY = 1e-6
"""Floor of the squared norms that are divided by."""


def sample_mean(x: Tensor) -> Tensor:
    """<x>: the mean over all but the sample, (B, 1, ...)."""
    return x.mean(dim=tuple(range(1, x.dim())), keepdim=True)


VelocityModel = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, *S), t (B,)) -> velocity u (B, C, *S)."""


@dataclass(frozen=True)
class Prediction:
    """q(x | x_t) as guidance left it, with what the second order needs to fuse with the guidance.

    base: the conditional mixture before guidance. gaussian: base's moment-matched Gaussian, its variance averaged over
    positions, (B, 1, 1, ...). factor: what guidance multiplies base by, bias: what it adds to base's mean, (B, C, *S);
    both None when unguided. scale: the guidance scale, else 0.
    """

    base: GaussianMixture
    gaussian: IsotropicGaussian
    factor: GaussianFactor | None = None
    bias: Tensor | None = None
    scale: float = 0.0

    @property
    def mixture(self) -> GaussianMixture:
        """The guided mixture, base itself when unguided. Its means are made anew each time."""
        return self.base if self.factor is None else self.base.times(self.factor)


MixtureModel = Callable[[Tensor, Tensor], Prediction]
"""(x_t (B, C, *S), t (B,)) -> Prediction of the data."""


def sample_gaussian(mixture: GaussianMixture) -> IsotropicGaussian:
    """The moment-matched Gaussian with one variance a sample: averaged over positions, (B, 1, 1, ...)."""
    matched = mixture.moment_matched()
    return IsotropicGaussian(matched.mean, sample_mean(matched.variance))


def unguided(mixture: GaussianMixture) -> Prediction:
    """The prediction of a mixture that no guidance has touched."""
    return Prediction(mixture, sample_gaussian(mixture))
