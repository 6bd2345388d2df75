"""Probabilistic guidance: re-weight the conditional mixture by a shifted Gaussian.

With the conditional mixture's moment-matched Gaussian N(mu_c, V), V averaged over positions, and the unconditional mean
mu_u: e = mu_c - mu_u, made orthogonal to mu_c; bias = w e sqrt(V / max(<e^2>, 1e-6)); the conditional mixture is
multiplied by N(mu_c + bias, V (1 - w^2)) / N(mu_c, V). The scale w lies in [0, 1). <.> is the mean over C and positions
of a sample. The bias has the size w sqrt(V), and a smaller one where the means differ by less than 1e-3, by rounding.

The unconditional mean may also be that of a weaker model (autoguidance, Karras et al., arXiv 2406.02507).
Source: GMFlow, arXiv 2504.05304, section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.model import (
    TINY,
    GuidanceEffect,
    MixtureModel,
    Prediction,
    VelocityModel,
    sample_gaussian,
    sample_mean,
)
from gmtool.flow.path import mean_data
from gmtool.mixture.gaussian_mixture import GaussianMixture, IsotropicGaussian, quotient


def guidance_bias(gaussian: IsotropicGaussian, unconditional_mean: Tensor, scale: float, orthogonal: float) -> Tensor:
    """bias (B, C, *S): the direction mu_c - mu_u less ``orthogonal`` of its part along mu_c.

    <bias^2> is w^2 V, and less where that of the direction is below 1e-6; see the module.
    """
    mean = gaussian.mean
    direction = mean - unconditional_mean
    along = sample_mean(direction * mean) / sample_mean(mean.square()).clamp(min=TINY)
    direction = direction - orthogonal * along * mean
    return direction * scale * (gaussian.variance / sample_mean(direction.square()).clamp(min=TINY)).sqrt()


def guide(conditional: GaussianMixture, unconditional_mean: Tensor, scale: float, orthogonal: float) -> Prediction:
    """Guide a conditional mixture away from a mean (B, C, *S). 0 <= scale < 1, 0 <= orthogonal <= 1; see the module."""
    gaussian = sample_gaussian(conditional)
    bias = guidance_bias(gaussian, unconditional_mean, scale, orthogonal)
    target = IsotropicGaussian(gaussian.mean + bias, gaussian.variance * (1 - scale**2))
    return Prediction(conditional, gaussian, GuidanceEffect(quotient(target, gaussian), bias, scale))


@dataclass(frozen=True)
class Probabilistic:
    """The mixture guided away from another model's mean by ``scale`` in [0, 1); orthogonal in [0, 1]."""

    scale: float
    orthogonal: float = 1.0

    def __call__(self, model: MixtureModel, other: VelocityModel) -> MixtureModel:
        """See `gmtool.flow.guidance.base.Scheme`. Only the other model's mean velocity is used."""

        def guided(x_t: Tensor, t: Tensor) -> Prediction:
            away_from = mean_data(x_t, t, other(x_t, t))
            return guide(model(x_t, t).base, away_from, self.scale, self.orthogonal)

        return guided
