"""Densities of flows whose densities are known: Gaussians, mixtures, and any invertible linear flow."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from gmtool.evaluation.likelihood import (
    flow_density,
    mixture_density,
    normal_density,
    random_signs,
    velocity_nll,
)
from gmtool.flow.source import ModeStatistics
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.streams import SharedNoise, generator

SHAPE = (3, 2, 2)
MEAN = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(SHAPE)
STD = torch.linspace(0.3, 1.5, 12, dtype=torch.float64).reshape(SHAPE)


def data(count: int, seed: int = 0) -> torch.Tensor:
    return MEAN + STD * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[z - x | x_t] for data N(MEAN, STD^2) and z ~ N(0, I): the exact velocity."""
    t = t.reshape(-1, 1, 1, 1)
    variance = ((1 - t) * STD).square() + t.square()
    residual = x_t - (1 - t) * MEAN
    return t / variance * residual - MEAN - (1 - t) * STD.square() / variance * residual


def test_the_density_of_a_gaussian_is_known():
    """Its Jacobian is diagonal, of which random signs give the trace exactly."""
    x = data(20)
    probes = [random_signs(SharedNoise(len(x), generator(1)), x)]
    density = flow_density(gaussian_velocity, normal_density, x, probes, tolerance=1e-8)
    expected = torch.distributions.Normal(MEAN, STD).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(density.log_density, expected, rtol=1e-5, atol=1e-5)
    assert density.evaluations > 10
    entropy = float(torch.distributions.Normal(MEAN, STD).entropy().sum())
    many = data(4000, seed=2)
    nats = -flow_density(
        gaussian_velocity, normal_density, many, [random_signs(SharedNoise(len(many), generator(0)), many)]
    ).log_density
    assert float(nats.mean()) == pytest.approx(entropy, abs=4 * float(nats.std()) / 4000**0.5)


def test_hutchinsons_estimate_is_unbiased_where_the_jacobian_is_not_diagonal():
    """x_1 = exp(A) x_0: log p_0(x_0) = log N(exp(A) x_0) + tr A, estimated with a deviation that falls with probes."""
    random = torch.Generator().manual_seed(0)
    matrix = 0.5 * torch.randn(6, 6, generator=random, dtype=torch.float64)
    x = torch.randn(1, 6, generator=random, dtype=torch.float64).expand(2000, 6)

    def field(x_t: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return x_t @ matrix.T

    expected = float(normal_density(x[:1] @ torch.matrix_exp(matrix).T) + matrix.trace())
    deviations = []
    for count in (1, 4):
        probes = [random_signs(SharedNoise(len(x), random), x) for _ in range(count)]
        density = flow_density(field, normal_density, x, probes, tolerance=1e-7).log_density
        deviations.append(float(density.std()))
        assert float(density.mean()) == pytest.approx(expected, abs=5 * deviations[-1] / 2000**0.5)
    assert deviations[0] / deviations[1] == pytest.approx(2, rel=0.15)


def test_a_mixtures_density_is_scipys():
    random = np.random.default_rng(0)
    means, stds, weights = (
        random.normal(size=(5, 3, 2)),
        random.uniform(0.2, 2, (5, 3, 2)),
        random.dirichlet(np.ones(5)),
    )
    x = torch.from_numpy(random.normal(size=(7, 3, 2)))
    table = ModeStatistics(torch.from_numpy(means), torch.from_numpy(stds))
    expected = sum(
        weight * multivariate_normal(mean.ravel(), np.diag(std.ravel() ** 2)).pdf(x.flatten(1).numpy())
        for mean, std, weight in zip(means, stds, weights, strict=True)
    )
    for at_once in (2, 100):
        density = mixture_density(
            x,
            torch.from_numpy(weights).expand(7, -1),
            lambda modes: ModeStatistics(table.mean[modes], table.std[modes]),
            at_once,
        )
        np.testing.assert_allclose(density.numpy(), np.log(expected), rtol=1e-10)


def test_the_nll_of_a_velocity_is_that_of_its_mixture():
    """One component: the NLL of a Gaussian; its mean over noise is the Gaussian's cross entropy."""
    x, z = data(5).float(), torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(3))
    t, std = torch.full((5,), 0.25), 0.7

    def predict(x_t: torch.Tensor, _: torch.Tensor) -> GaussianMixture:
        return GaussianMixture(
            means=(2 * x_t).unsqueeze(1),
            log_weights=torch.zeros(5, 1, 1, 2, 2),
            variance=torch.full((5, 1, 1, 1, 1), std**2),
        )

    nll = velocity_nll(predict, x, z, t)
    residual = (z - x) - 2 * (0.75 * x + 0.25 * z)
    expected = 0.5 * (residual / std).square() + math.log(std) + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(nll, expected.flatten(1).mean(1))
    with pytest.raises(TypeError, match="velocity, not a mixture"):
        velocity_nll(lambda x_t, _: x_t, x, z, t)


def test_the_nll_of_a_velocity_is_a_density_at_any_std():
    """A narrow Gaussian around the velocity: the mean NLL is its entropy, far below -log 1e4."""
    x, z = data(500), torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    std, noise = 1e-6, torch.randn(500, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    nll = velocity_nll(
        lambda x_t, _: GaussianMixture(
            (z - x + std * noise).unsqueeze(1), x_t.new_zeros(500, 1, 1, 2, 2), x_t.new_full((500, 1, 1, 1, 1), std**2)
        ),
        x,
        z,
        torch.full((500,), 0.25, dtype=torch.float64),
    )
    expected = 0.5 * noise.square() + math.log(std) + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(nll, expected.flatten(1).mean(1))
    assert float(nll.mean()) == pytest.approx(0.5 + math.log(std) + 0.5 * math.log(2 * math.pi), abs=0.1)
