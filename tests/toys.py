"""Mixtures with everything known in closed form."""

from __future__ import annotations

import torch
from gmtool.flow.prediction import MixtureModel, Prediction, unguided
from torch import Tensor

from gmtool.flow.model import MixtureModel, Prediction, unguided
from gmtool.flow.path import per_sample
from gmtool.flow.solvers import SOLVERS
from gmtool.flow.solvers.base import Solver, SolverOptions, integrate
from gmtool.flow.times import full_grid
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.streams import Noise


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


def exact_posterior(centers: Tensor, std: Tensor | float, weights: Tensor) -> MixtureModel:
    """The exact q(x | x_t) when the data at every position are sum_m w_m N(centers_m, std^2 I): a perfect network.

    centers (M, C), weights (M,), std a number; or one of each a sample, (B, M, C), (B, M) and (B,).
    Conjugacy: variance v s^2 / (a^2 v + s^2), means c + a v / (a^2 v + s^2) (x_t - a c).
    """

    def model(x_t: Tensor, t: Tensor) -> Prediction:
        ones = [1] * (x_t.dim() - 2)
        sigma = per_sample(t, x_t).unsqueeze(1)
        alpha, point = 1 - sigma, x_t.unsqueeze(1)
        mean = centers.reshape(-1, *centers.shape[-2:], *ones).to(x_t)
        variance = torch.as_tensor(std).to(x_t).reshape(-1, 1, 1, *ones).square()
        spread = alpha.square() * variance + sigma.square()
        residual = point - alpha * mean
        log_weights = weights.log().to(x_t).reshape(-1, weights.shape[-1], 1, *ones)
        log_weights = log_weights - residual.square().sum(2, keepdim=True) / (2 * spread)
        means = mean + alpha * variance / spread * residual
        return unguided(GaussianMixture(means, torch.log_softmax(log_weights, 1), variance * sigma.square() / spread))

    return model


def solve(solver: Solver, model, x: Tensor, evaluations: int, shift=1.0, noise: Noise | None = None) -> Tensor:
    """x from t = 1 to t = 0 along the full grid of a number of network evaluations."""
    return integrate(solver, model, x, full_grid(solver.intervals(evaluations), shift), noise)


def solve_by_name(name: str, model, x: Tensor, evaluations: int, shift=1.0, noise: Noise | None = None) -> Tensor:
    """`solve` by a row of the table, of the second order where the row leaves it open."""
    return solve(SOLVERS[name].make(SolverOptions(evaluations, shift)), model, x, evaluations, shift, noise)
