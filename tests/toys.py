"""Mixtures with everything known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from gmtool.flow.path import per_sample
from gmtool.flow.prediction import MixtureModel, Prediction, unguided
from gmtool.mixture.gaussian_mixture import GaussianMixture


def random_mixture(
    seed: int, batch=2, components=4, channels=3, spatial=(2, 2), dtype=torch.float64
) -> GaussianMixture:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=dtype)

    return GaussianMixture(
        normal(batch, components, channels, *spatial),
        torch.log_softmax(normal(batch, components, 1, *spatial), 1),
        normal(batch, 1, 1, *[1] * len(spatial)).mul(0.5).exp(),
    )


def random_point(seed: int, like: GaussianMixture) -> Tensor:
    shape = like.means[:, 0].shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=like.means.dtype)


def exact_posterior(centers: Tensor, std: float, weights: Tensor) -> MixtureModel:
    """The exact q(x | x_t) when the data at every position are sum_m w_m N(centers_m, std^2 I): a perfect network.

    centers (M, C), weights (M,). Conjugacy: variance v s^2 / (a^2 v + s^2), means c + a v / (a^2 v + s^2) (x_t - a c).
    """

    def model(x_t: Tensor, t: Tensor) -> Prediction:
        sigma = per_sample(t, x_t).unsqueeze(1)
        alpha, point = 1 - sigma, x_t.unsqueeze(1)
        mean = centers.reshape(1, *centers.shape, *[1] * (x_t.dim() - 2)).to(x_t)
        spread = alpha.square() * std**2 + sigma.square()
        residual = point - alpha * mean
        log_weights = weights.log().to(x_t).reshape(1, -1, 1, *[1] * (x_t.dim() - 2))
        log_weights = log_weights - residual.square().sum(2, keepdim=True) / (2 * spread)
        means = mean + alpha * std**2 / spread * residual
        return unguided(GaussianMixture(means, torch.log_softmax(log_weights, 1), std**2 * sigma.square() / spread))

    return model
