"""What a network predicts, and the two kinds of model that solvers integrate and guidance wraps.

Source: Lipman et al., arXiv 2210.02747; GMFlow, arXiv 2504.05304, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.path import data_mixture
from gmtool.mixture.gaussian_mixture import GaussianFactor, GaussianMixture, IsotropicGaussian

TINY = 1e-6
"""Floor of the squared norms that are divided by."""

Predict = Callable[[Tensor, Tensor], Tensor | GaussianMixture]
"""A network whose conditions are given: (x_t (B, C, *S), t (B,)) -> the velocity u, or a mixture over it."""

VelocityModel = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, *S), t (B,)) -> velocity u (B, C, *S)."""


def sample_mean(x: Tensor) -> Tensor:
    """<x>: the mean over all but the sample, (B, 1, ...)."""
    return x.mean(dim=tuple(range(1, x.dim())), keepdim=True)


@dataclass(frozen=True)
class GuidanceEffect:
    """The effect of guidance on a mixture: the factor that multiplies it, the bias (B, C, *S) that is added to its
    mean, and the guidance scale.
    """

    factor: GaussianFactor
    bias: Tensor
    scale: float


@dataclass(frozen=True)
class Prediction:
    """q(x | x_t), with what the second order needs to fuse with guidance.

    base: the conditional mixture before guidance. gaussian: base's moment-matched Gaussian, its variance averaged over
    positions, (B, 1, 1, ...). guidance: None when unguided.
    """

    base: GaussianMixture
    gaussian: IsotropicGaussian
    guidance: GuidanceEffect | None = None

    @property
    def factor(self) -> GaussianFactor | None:
        """What guidance multiplies base by; None when unguided."""
        return None if self.guidance is None else self.guidance.factor

    @property
    def mixture(self) -> GaussianMixture:
        """The guided mixture, base itself when unguided. Its means are recomputed at every access."""
        return self.base if self.guidance is None else self.base.times(self.guidance.factor)


MixtureModel = Callable[[Tensor, Tensor], Prediction]
"""(x_t (B, C, *S), t (B,)) -> Prediction of the data."""


def sample_gaussian(mixture: GaussianMixture) -> IsotropicGaussian:
    """The moment-matched Gaussian with one variance per sample: averaged over positions, (B, 1, 1, ...)."""
    matched = mixture.moment_matched()
    return IsotropicGaussian(matched.mean, sample_mean(matched.variance))


def unguided(mixture: GaussianMixture) -> Prediction:
    """The prediction of an unguided mixture."""
    return Prediction(mixture, sample_gaussian(mixture))


def velocity_model(predict: Predict) -> VelocityModel:
    """The model of the mean velocity E[u | x_t], of a network of either kind."""

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        predicted = predict(x_t, t)
        return predicted.mean() if isinstance(predicted, GaussianMixture) else predicted

    return model


def mixture_model(predict: Predict) -> MixtureModel:
    """The model of q(x | x_t), x = x_t - t u, of a network that predicts a mixture over u.

    The model raises TypeError where the network predicts a velocity.
    """

    def model(x_t: Tensor, t: Tensor) -> Prediction:
        predicted = predict(x_t, t)
        if not isinstance(predicted, GaussianMixture):
            raise TypeError("the network predicts a velocity, not a mixture")
        return unguided(data_mixture(predicted, x_t, t))

    return model
