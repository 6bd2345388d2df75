import golden
import pytest
import torch
from scipy import stats
from toys import random_mixture, random_point

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.mixture.knothe_rosenblatt import from_gaussian, principal_axes, to_gaussian

G = golden.arrays("gmflow_math")


def cast(mixture, dtype):
    return GaussianMixture(mixture.means.to(dtype), mixture.log_weights.to(dtype), mixture.variance.to(dtype))


def many_positions(count, components=3, channels=3, varied=False):
    """One mixture at ``count`` positions, its standard normal noise and its samples."""
    one = random_mixture(0, batch=1, components=components, channels=channels, spatial=(1,))
    draw = torch.Generator().manual_seed(1)
    variance = 0.5 * one.variance
    if varied:
        variance = variance * (0.5 + torch.rand(1, components, 1, 1, generator=draw, dtype=torch.float64))
    mixture = GaussianMixture(one.means.expand(-1, -1, -1, count), one.log_weights.expand(-1, -1, -1, count), variance)
    noise = torch.randn(1, channels, count, generator=draw, dtype=torch.float64)
    uniform = torch.rand(2, 1, 1, count, generator=draw, dtype=torch.float64)
    return mixture, noise, mixture.draw(uniform[0], noise), uniform[1]


@pytest.mark.parametrize("draw", range(3))
def test_maps_match_the_reference(draw):
    mixture, x = golden.mixture(G, "u"), G["kr_samples"][:, draw]
    axes = principal_axes(mixture)
    z, expected = to_gaussian(mixture, x, axes), G["kr_gaussian"][:, draw]
    # the sign of an axis is free, but one for all positions of a sample
    sign = (z * expected).sum((2, 3), keepdim=True).sign()
    torch.testing.assert_close(z * sign, expected, **golden.TOLERANCE)
    torch.testing.assert_close(from_gaussian(mixture, z, axes), G["kr_back"][:, draw], **golden.TOLERANCE)


def test_axes_are_the_eigenvectors_of_the_averaged_covariance():
    mixture = random_mixture(1, channels=5)
    axes = principal_axes(mixture)
    covariance = mixture.moment_matched_full().covariance.mean((-2, -1))
    rotated = axes @ covariance @ axes.mT
    values = rotated.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(rotated, torch.diag_embed(values))
    torch.testing.assert_close(axes @ axes.mT, torch.eye(5, dtype=torch.float64).expand(2, -1, -1))
    assert (values.diff() < 0).all()
    assert (axes.amax(-1) > -axes.amin(-1)).all()


@pytest.mark.parametrize("leading", [1, 3])
def test_leading_axes_are_those_of_the_whole_basis_and_the_rest_complete_it(leading):
    """Where the eigenvalues differ; a mixture without any spread still gets axes."""
    mixture = random_mixture(2, components=6, channels=40)
    scale = 0.7 ** torch.arange(40, dtype=torch.float64)
    mixture = GaussianMixture(mixture.means * scale.reshape(-1, 1, 1), mixture.log_weights, mixture.variance)
    few, whole = principal_axes(mixture, leading), principal_axes(mixture)
    torch.testing.assert_close(few[:, :leading], whole[:, :leading], atol=1e-6, rtol=0)
    flat = GaussianMixture(torch.zeros_like(mixture.means), mixture.log_weights, mixture.variance)
    for axes in (few, principal_axes(flat, leading)):
        torch.testing.assert_close(axes @ axes.mT, torch.eye(40, dtype=torch.float64).expand(2, -1, -1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("varied", [False, True])
def test_the_maps_invert_each_other(dtype, tolerance, varied):
    mixture, noise, x, _ = many_positions(2000, varied=varied)
    mixture, noise, x = cast(mixture, dtype), noise.to(dtype), x.to(dtype)
    axes = principal_axes(mixture)
    back = from_gaussian(mixture, to_gaussian(mixture, x, axes), axes)
    torch.testing.assert_close(back, x, atol=tolerance, rtol=0)
    again = to_gaussian(mixture, from_gaussian(mixture, noise, axes), axes)
    torch.testing.assert_close(again, noise, atol=tolerance, rtol=0)


def assert_standard_normal(z):
    """By Kolmogorov and Smirnov a coordinate, and no correlation between coordinates."""
    count = z.shape[-1]
    for point in z[0]:
        assert stats.kstest(point.numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(z[0]) - torch.eye(len(z[0]), dtype=z.dtype)
    assert correlation.abs().max() < 5 / count**0.5


@pytest.mark.parametrize("leading", [None, 1, 2])
@pytest.mark.parametrize("varied", [False, True])
def test_samples_become_standard_normal(leading, varied):
    mixture, _, x, uniform = many_positions(20_000, varied=varied)
    assert_standard_normal(to_gaussian(mixture, x, principal_axes(mixture), leading, uniform))


@pytest.mark.slow
@pytest.mark.parametrize("leading", [None, 1, 2])
@pytest.mark.parametrize("varied", [False, True])
def test_noise_becomes_samples(leading, varied):
    """The whole map takes the draws back to a standard Gaussian, whatever number of axes made them."""
    mixture, noise, _, uniform = many_positions(20_000, varied=varied)
    axes = principal_axes(mixture)
    assert_standard_normal(to_gaussian(mixture, from_gaussian(mixture, noise, axes, leading, uniform), axes))


def test_transported_axes_are_inverted_and_the_others_need_a_draw():
    mixture, noise, _, uniform = many_positions(500)
    axes = principal_axes(mixture)
    x = from_gaussian(mixture, noise, axes, 2, uniform)
    torch.testing.assert_close(to_gaussian(mixture, x, axes, 2, uniform)[:, :2], noise[:, :2])
    with pytest.raises(ValueError, match="give uniform numbers"):
        from_gaussian(mixture, noise, axes, 2)
    with pytest.raises(ValueError, match="leading must lie in"):
        to_gaussian(mixture, x, axes, 4)


def test_the_jacobian_is_the_ratio_of_the_densities():
    """log |det dz / dx| = log q(x) - log N(z; 0, I): the change of variables."""
    mixture = random_mixture(2, batch=1, channels=3, spatial=())
    x, axes = random_point(3, mixture), principal_axes(mixture)
    jacobian = torch.autograd.functional.jacobian(lambda x: to_gaussian(mixture, x, axes), x)
    z = to_gaussian(mixture, x, axes)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    volume = jacobian.reshape(3, 3).slogdet().logabsdet
    torch.testing.assert_close(volume, mixture.log_density(x).squeeze() - normal)
    inverse = torch.autograd.functional.jacobian(lambda z: from_gaussian(mixture, z, axes), z)
    identity = jacobian.reshape(3, 3) @ inverse.reshape(3, 3)
    torch.testing.assert_close(identity, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("map_", [to_gaussian, from_gaussian])
@pytest.mark.parametrize("leading", [None, 1])
@pytest.mark.parametrize("deviations", [1, 3], ids=["shared", "own"])
def test_gradients_match_finite_differences(map_, leading, deviations):
    mixture = random_mixture(4, batch=1, components=3, channels=2, spatial=(2,))
    axes, uniform = principal_axes(mixture), torch.full((1, 1, 2), 0.4, dtype=torch.float64)
    log_std = 0.2 * torch.randn(1, deviations, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def mapped(point, means, logits, log_std):
        mixture = GaussianMixture(means, torch.log_softmax(logits, 1), (2 * log_std).exp())
        return map_(mixture, point, axes, leading, uniform)

    arguments = (random_point(5, mixture), mixture.means, mixture.log_weights, log_std)
    assert torch.autograd.gradcheck(mapped, [argument.clone().requires_grad_() for argument in arguments])


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 300.0), (torch.float64, 1e4)])
def test_one_component_is_whitened_also_far_in_the_tails(dtype, far):
    mixture = cast(random_mixture(6, batch=1, components=1, channels=2, spatial=(5,)), dtype)
    axes = torch.eye(2, dtype=dtype).unsqueeze(0)
    scale = torch.tensor([-far, -30.0, 0.0, 30.0, far], dtype=dtype)
    x = (mixture.means.squeeze(1) + mixture.variance.sqrt().squeeze(1) * scale).requires_grad_()
    z = to_gaussian(mixture, x, axes)
    torch.testing.assert_close(z, scale.expand_as(z), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(from_gaussian(mixture, z, axes), x, atol=1e-3, rtol=1e-5)
    (gradient,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(gradient, mixture.variance.squeeze(1).rsqrt().expand_as(gradient), atol=0, rtol=3e-3)


def test_the_order_and_the_absent_components_do_not_matter():
    mixture = random_mixture(7)
    axes, x = principal_axes(mixture), random_point(8, mixture)
    order = torch.tensor([2, 0, 3, 1])
    permuted = GaussianMixture(mixture.means[:, order], mixture.log_weights[:, order], mixture.variance)
    padded = GaussianMixture(
        torch.cat([mixture.means, 100 + mixture.means], 1),
        torch.cat([mixture.log_weights, torch.full_like(mixture.log_weights, -torch.inf)], 1),
        mixture.variance,
    )
    for other in (permuted, padded):
        torch.testing.assert_close(to_gaussian(other, x, axes), to_gaussian(mixture, x, axes))
        torch.testing.assert_close(from_gaussian(other, x, axes), from_gaussian(mixture, x, axes))


def test_well_separated_components_and_broken_numbers_end():
    mixture = random_mixture(9, dtype=torch.float32)
    narrow = GaussianMixture(10 * mixture.means, mixture.log_weights, 1e-6 * mixture.variance)
    noise = random_point(10, mixture)
    assert torch.isfinite(from_gaussian(narrow, noise, principal_axes(narrow))).all()
    broken = from_gaussian(mixture, noise * torch.nan, principal_axes(mixture))
    assert broken.isnan().all()
