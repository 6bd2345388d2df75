import golden
import numpy as np
import pytest
import torch
from scipy import stats
from toys import random_mixture, random_point

from gmtool.mixture.gaussian_mixture import (
    GaussianFactor,
    GaussianMixture,
    IsotropicGaussian,
    kl_by_sampling,
    power,
    quotient,
)

G = golden.arrays("gmflow_math")


def test_moments_match_the_reference():
    mixture = golden.predicted(G)
    matched = mixture.moment_matched()
    torch.testing.assert_close(mixture.mean(), G["x0_mean"], **golden.TOLERANCE)
    torch.testing.assert_close(matched.mean, G["x0_iso_mean"], **golden.TOLERANCE)
    torch.testing.assert_close(matched.variance, G["x0_iso_var"], **golden.TOLERANCE)


def test_log_density_matches_the_reference():
    values = torch.stack([golden.predicted(G).log_density(G["lp_samples"][:, i]) for i in range(5)], 1)
    torch.testing.assert_close(values, G["lp_values"], **golden.TOLERANCE)


def test_product_matches_the_reference():
    gaussian = IsotropicGaussian(G["ga_mean"], G["ga_var"])
    factor = GaussianFactor(1 / gaussian.variance, torch.zeros_like(gaussian.mean), gaussian.mean)
    product, expected = golden.predicted(G).times(factor), golden.mixture(G, "prod")
    torch.testing.assert_close(product.means, expected.means, **golden.TOLERANCE)
    torch.testing.assert_close(product.log_weights, expected.log_weights, **golden.TOLERANCE)
    torch.testing.assert_close(product.variance, expected.variance, **golden.TOLERANCE)


def test_quotient_matches_the_reference():
    factor = quotient(IsotropicGaussian(G["ga_mean"], G["ga_var"]), IsotropicGaussian(G["gb_mean"], G["gb_var"]))
    narrower = G["ga_var"] < G["gb_var"]  # elsewhere the quotient is no density
    variance = 1 / factor.precision
    mean = factor.center + factor.shift * variance
    assert narrower.any()
    torch.testing.assert_close(variance[narrower], G["ratio_var"][narrower], **golden.TOLERANCE)
    everywhere = narrower.expand_as(mean)
    torch.testing.assert_close(mean[everywhere], G["ratio_mean"][everywhere], **golden.TOLERANCE)


def test_log_density_is_that_of_scipy():
    mixture = random_mixture(0, batch=1, components=3, channels=2, spatial=())
    x = random_point(1, mixture)
    densities = [
        stats.multivariate_normal(mixture.means[0, k], mixture.variance.item() * np.eye(2)).pdf(x[0]) for k in range(3)
    ]
    expected = np.log(np.dot(mixture.log_weights[0, :, 0].exp().numpy(), densities))
    assert mixture.log_density(x).item() == pytest.approx(expected, abs=1e-12)


def test_log_density_integrates_to_one():
    mixture = random_mixture(3, batch=1, components=3, channels=1, spatial=())
    grid = torch.linspace(-15, 15, 20001, dtype=torch.float64)
    density = GaussianMixture(
        mixture.means.expand(len(grid), -1, -1), mixture.log_weights.expand(len(grid), -1, -1), mixture.variance
    ).log_density(grid[:, None])
    assert torch.trapezoid(density.exp(), grid).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("shared", [True, False])
def test_product_is_proportional_to_the_pointwise_product(shared):
    mixture = random_mixture(4)
    if not shared:
        varied = torch.rand(2, 4, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.3
        mixture = GaussianMixture(mixture.means, mixture.log_weights, varied)
    factor = GaussianFactor(
        torch.full((2, 1, 1, 1), 0.7, dtype=torch.float64), random_point(5, mixture), random_point(6, mixture)
    )
    product = mixture.times(factor)

    def excess(x):
        offset = x - factor.center
        log_factor = (factor.shift * offset - 0.5 * factor.precision * offset.square()).sum(1)
        return product.log_density(x) - mixture.log_density(x) - log_factor

    torch.testing.assert_close(excess(random_point(7, mixture)), excess(random_point(8, mixture)))


def test_product_does_not_depend_on_where_the_factor_is_centred():
    mixture = random_mixture(9)
    first = GaussianFactor(
        torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64), random_point(1, mixture), random_point(2, mixture)
    )
    moved = random_point(3, mixture)
    second = GaussianFactor(first.precision, first.shift - first.precision * (moved - first.center), moved)
    torch.testing.assert_close(mixture.times(first).means, mixture.times(second).means)
    torch.testing.assert_close(mixture.times(first).log_weights, mixture.times(second).log_weights)


def test_flat_factor_changes_nothing():
    mixture = random_mixture(2)
    zero = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    same = mixture.times(GaussianFactor(zero[:, :1], zero, zero))
    torch.testing.assert_close(same.means, mixture.means)
    torch.testing.assert_close(same.log_weights, mixture.log_weights)


def test_zero_weights_and_tiny_variances_stay_finite():
    mixture = random_mixture(1, dtype=torch.float32)
    weights = mixture.log_weights.clone()
    weights[:, 0] = -torch.inf
    hard = GaussianMixture(mixture.means, torch.log_softmax(weights, 1), torch.full_like(mixture.variance, 1e-12))
    x = random_point(2, hard)
    product = hard.times(GaussianFactor(torch.full((2, 1, 1, 1), 1e4), 100 * x, x))
    for value in (hard.mean(), hard.log_density(x), product.means, product.mean()):
        assert torch.isfinite(value).all()
    assert (product.log_weights[:, 0].exp() == 0).all()


def test_draw_has_the_moments_of_the_mixture():
    count = 200_000
    one = random_mixture(11, batch=1, components=3, channels=2, spatial=())
    many = GaussianMixture(
        one.means.expand(count, -1, -1), one.log_weights.expand(count, -1, -1), one.variance.expand(count, -1, -1)
    )
    draw = torch.Generator().manual_seed(0)
    uniform = torch.rand(count, 1, generator=draw, dtype=torch.float64)
    samples = many.draw(uniform, torch.randn(count, 2, generator=draw, dtype=torch.float64))
    matched = one.moment_matched()
    error = (matched.variance / count).sqrt().item()
    torch.testing.assert_close(samples.mean(0), matched.mean[0], atol=5 * error, rtol=0)
    assert samples.var(0).mean().item() == pytest.approx(matched.variance.item(), rel=0.02)


def test_draw_picks_components_by_the_cumulated_weights():
    mixture = GaussianMixture(
        torch.tensor([[[0.0], [1.0], [2.0]]]), torch.tensor([[[0.2], [0.5], [0.3]]]).log(), torch.zeros(1, 1, 1)
    )
    for uniform, expected in ((0.0, 0.0), (0.19, 0.0), (0.21, 1.0), (0.69, 1.0), (0.71, 2.0), (1.0, 2.0)):
        assert mixture.draw(torch.tensor([[uniform]]), torch.zeros(1, 1)).item() == expected


@pytest.mark.parametrize("components", [2, 3, 7, 64])
def test_a_component_of_weight_zero_is_never_picked(components: int) -> None:
    """Whatever rounding leaves of the sum of weights, and for the largest number below 1."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(500, components, 1, generator=generator)
    weights[torch.rand(500, components, 1, generator=generator) < 0.5] = 0
    weights[:250, -1], weights[:, 0] = 0, weights[:, 0] + 1e-3
    log_weights = (weights / weights.sum(1, keepdim=True)).log()
    numbers = torch.arange(components, dtype=torch.float32)[None, :, None].expand(500, -1, -1)
    mixture = GaussianMixture(numbers, log_weights, torch.ones(500, 1, 1))
    for uniform in (0.0, 0.5, 1 - 2**-24):
        picked = mixture.pick(torch.full((500, 1), uniform)).mean.long()
        assert (torch.take_along_dim(weights[..., 0], picked, 1) > 0).all()


def test_permuting_components_changes_nothing():
    mixture = random_mixture(5)
    order = torch.tensor([2, 0, 3, 1])
    permuted = GaussianMixture(mixture.means[:, order], mixture.log_weights[:, order], mixture.variance)
    x = random_point(6, mixture)
    torch.testing.assert_close(permuted.mean(), mixture.mean())
    torch.testing.assert_close(permuted.log_density(x), mixture.log_density(x))


def isotropic(seed, mixture, scale=1.0):
    return IsotropicGaussian(random_point(seed, mixture), torch.full((2, 1, 1, 1), scale, dtype=torch.float64))


def log_normal(gaussian, x):
    """Up to its constant."""
    return -0.5 * (x - gaussian.mean).square().sum(1) / gaussian.variance.squeeze(1)


def test_full_gaussian_has_the_covariance_of_numpy():
    mixture = random_mixture(12, batch=1, components=3, channels=4, spatial=())
    weights, means = mixture.log_weights[0, :, 0].exp().numpy(), mixture.means[0].numpy()
    expected = np.cov(means.T, aweights=weights, ddof=0) + mixture.variance.item() * np.eye(4)
    gaussian = mixture.moment_matched_full()
    torch.testing.assert_close(gaussian.covariance[0], torch.as_tensor(expected))
    torch.testing.assert_close(gaussian.mean, mixture.mean())


def test_full_gaussian_agrees_with_the_isotropic_one():
    mixture = random_mixture(13)
    trace = mixture.moment_matched_full().covariance.diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(trace / 3, mixture.moment_matched().variance.squeeze(1))


def test_powers_of_gaussians_multiply_pointwise():
    mixture = random_mixture(14)
    first, second = isotropic(15, mixture), isotropic(16, mixture, 2.0)
    product = mixture.times(power(first, 1.5).times(power(second, -0.7)))

    def excess(x):
        factors = 1.5 * log_normal(first, x) - 0.7 * log_normal(second, x)
        return product.log_density(x) - mixture.log_density(x) - factors

    torch.testing.assert_close(excess(random_point(17, mixture)), excess(random_point(18, mixture)))


def test_powers_match_the_reference_quotient():
    first, second = IsotropicGaussian(G["ga_mean"], G["ga_var"]), IsotropicGaussian(G["gb_mean"], G["gb_var"])
    narrower = G["ga_var"] < G["gb_var"]
    gaussian = power(first, 1).times(power(second, -1)).gaussian()
    torch.testing.assert_close(gaussian.variance[narrower], G["ratio_var"][narrower], **golden.TOLERANCE)
    everywhere = narrower.expand_as(gaussian.mean)
    torch.testing.assert_close(gaussian.mean[everywhere], G["ratio_mean"][everywhere], **golden.TOLERANCE)


def test_a_gaussian_over_itself_is_flat_and_its_own_power_is_itself():
    gaussian = isotropic(19, random_mixture(0))
    flat = power(gaussian, 2).times(power(gaussian, -2))
    assert not flat.precision.any() and not flat.shift.any()
    same = power(gaussian, 3).times(power(gaussian, -2)).gaussian()
    torch.testing.assert_close(same.mean, gaussian.mean)
    torch.testing.assert_close(same.variance, gaussian.variance)


@pytest.mark.parametrize("shared", [True, False])
def test_product_of_mixtures_is_the_normalised_pointwise_product(shared):
    first, second = random_mixture(20), random_mixture(21, components=3)
    if not shared:
        varied = torch.rand(2, 3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.3
        second = GaussianMixture(second.means, second.log_weights, varied)
    product = first.product(second)
    assert product.components == 12

    def excess(x):
        return product.log_density(x) - first.log_density(x) - second.log_density(x)

    torch.testing.assert_close(excess(random_point(22, first)), excess(random_point(23, first)))
    torch.testing.assert_close(product.log_weights.exp().sum(1), torch.ones(2, 1, 2, 2, dtype=torch.float64))


@pytest.mark.slow
def test_kl_by_sampling_is_that_of_two_gaussians():
    """Closed form for K = 1: ((v + |a - b|^2 / C) / w - 1 - log(v / w)) C / 2; and 0 of a mixture to itself."""
    first, second = (random_mixture(seed, components=1, channels=2, spatial=(1,)) for seed in (24, 25))
    draw = torch.Generator().manual_seed(0)
    uniform = torch.rand(5_000, 2, 1, 1, generator=draw, dtype=torch.float64)
    normal = torch.randn(5_000, 2, 2, 1, generator=draw, dtype=torch.float64)
    v, w = first.variance.reshape(2, 1), second.variance.reshape(2, 1)
    distance = (first.means - second.means).square().sum((1, 2))
    expected = 0.5 * (2 * v / w + distance / w - 2 - 2 * (v / w).log())
    torch.testing.assert_close(kl_by_sampling(first, second, uniform, normal), expected, atol=0, rtol=0.1)
    own = kl_by_sampling(first, first, uniform[:10], normal[:10])
    assert not own.any()
