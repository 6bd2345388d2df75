"""Laws of the algebra of Gaussian mixtures, over random shapes, weights and variances."""

import pytest
import torch

from gmtool.mixture.gaussian_mixture import GaussianFactor, GaussianMixture, IsotropicGaussian, power, quotient


class Case:
    """A random mixture, factors with which every product exists, and points, of a random shape."""

    def __init__(self, seed):
        self.stream = torch.Generator().manual_seed(seed)
        self.batch, self.components, self.channels = self.integer(1, 4), self.integer(1, 9), self.integer(1, 13)
        self.spatial = [self.integer(1, 4) for _ in range(self.integer(0, 3))]
        own_variances, own_places = self.integer(0, 2), self.integer(0, 2)
        places = self.spatial if own_places else [1] * len(self.spatial)
        self.mixture = GaussianMixture(
            2 * self.normal(self.batch, self.components, self.channels, *self.spatial),
            torch.log_softmax(2 * self.normal(self.batch, self.components, 1, *self.spatial), 1),
            self.normal(self.batch, self.components if own_variances else 1, 1, *places).exp(),
        )

    def integer(self, low, below):
        return int(torch.randint(low, below, (1,), generator=self.stream))

    def normal(self, *shape):
        return torch.randn(*shape, dtype=torch.float64, generator=self.stream)

    def point(self):
        return self.normal(self.batch, self.channels, *self.spatial)

    def gaussian(self):
        return IsotropicGaussian(self.point(), self.normal(self.batch, 1, *[1] * len(self.spatial)).exp())

    def factor(self):
        precision = self.normal(self.batch, 1, *[1] * len(self.spatial)).exp()
        return GaussianFactor(precision, self.point(), self.point())


SEEDS = pytest.mark.parametrize("seed", range(12))


def inverse(factor):
    return GaussianFactor(-factor.precision, -factor.shift, factor.center)


def log_factor(factor, x):
    """The logarithm of a factor, up to its constant."""
    offset = x - factor.center
    return (factor.shift * offset - 0.5 * factor.precision * offset.square()).sum(1)


def assert_same(actual, expected):
    torch.testing.assert_close(actual.means, expected.means, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(actual.log_weights, expected.log_weights, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(*torch.broadcast_tensors(actual.variance, expected.variance), atol=1e-9, rtol=1e-9)


@SEEDS
def test_a_product_divided_by_its_factor_is_the_mixture(seed):
    case = Case(seed)
    factor = case.factor()
    assert_same(case.mixture.times(factor).times(inverse(factor)), case.mixture)
    gaussian = case.gaussian()
    assert_same(case.mixture.times(power(gaussian, 1)).times(power(gaussian, -1)), case.mixture)


@SEEDS
def test_products_with_factors_commute_and_associate(seed):
    case = Case(seed)
    first, second = case.factor(), case.factor()
    one_by_one = case.mixture.times(first).times(second)
    assert_same(case.mixture.times(second).times(first), one_by_one)
    assert_same(case.mixture.times(first.times(second)), one_by_one)
    assert_same(case.mixture.times(second.times(first).around(case.point())), one_by_one)


@SEEDS
def test_products_are_pointwise_and_normalised(seed):
    case = Case(seed)
    factor, x, y = case.factor(), case.point(), case.point()
    product = case.mixture.times(factor)
    excess = [
        product.log_density(variable) - case.mixture.log_density(variable) - log_factor(factor, variable)
        for variable in (x, y)
    ]
    torch.testing.assert_close(*excess, atol=1e-8, rtol=1e-9)
    ones = torch.ones(case.batch, 1, *case.spatial, dtype=torch.float64)
    torch.testing.assert_close(product.log_weights.exp().sum(1), ones)


@SEEDS
def test_the_mean_of_a_product_needs_no_product(seed):
    case = Case(seed)
    factor = case.factor()
    torch.testing.assert_close(case.mixture.mean_times(factor), case.mixture.times(factor).mean())


@SEEDS
def test_a_quotient_times_its_denominator_is_the_numerator(seed):
    case = Case(seed)
    wide = case.gaussian()
    narrow = IsotropicGaussian(case.point(), wide.variance * 0.5)
    gaussian = quotient(narrow, wide).times(power(wide, 1)).gaussian()
    torch.testing.assert_close(gaussian.mean, narrow.mean)
    torch.testing.assert_close(gaussian.variance, narrow.variance)


@SEEDS
def test_affine_maps_compose_invert_and_move_the_density(seed):
    case = Case(seed)
    scale, offset, x = case.normal(case.batch, 1, *[1] * len(case.spatial)).exp(), case.point(), case.point()
    moved = case.mixture.affine(-scale, offset)
    assert_same(moved.affine(-1 / scale, offset / scale), case.mixture)
    assert_same(moved.affine(2.0, offset), case.mixture.affine(-2 * scale, 3 * offset))
    change = case.channels * scale.log().flatten().reshape(-1, *[1] * len(case.spatial))
    density = moved.log_density(offset - scale * x)
    torch.testing.assert_close(density, case.mixture.log_density(x) - change)


@SEEDS
def test_the_moments_of_a_product_with_a_flat_factor_and_of_one_component(seed):
    case = Case(seed)
    zero = torch.zeros_like(case.point())
    assert_same(case.mixture.times(GaussianFactor(zero[:, :1], zero, case.point())), case.mixture)
    one = GaussianMixture(
        case.mixture.means[:, :1], torch.zeros_like(case.mixture.log_weights[:, :1]), case.mixture.variance[:, :1]
    )
    matched = one.moment_matched()
    torch.testing.assert_close(matched.mean, one.means[:, 0])
    torch.testing.assert_close(matched.variance, one.variance[:, 0].expand_as(matched.variance))


@SEEDS
def test_the_product_of_mixtures_commutes_and_contains_the_factors(seed):
    """With a mixture of one component it is the product with that Gaussian; in the other order, the same density."""
    case = Case(seed)
    gaussian = case.gaussian()
    single = GaussianMixture(
        gaussian.mean.unsqueeze(1), torch.zeros_like(gaussian.mean[:, :1]).unsqueeze(1), gaussian.variance.unsqueeze(1)
    )
    expected = case.mixture.times(power(gaussian, 1))
    assert_same(case.mixture.product(single), expected)
    x = case.point()
    torch.testing.assert_close(single.product(case.mixture).log_density(x), expected.log_density(x))
