import pytest
import torch
from scipy import stats
from toys import random_mixture, random_point

from gmtool.flow.objective import Pairs, TransitionDraws, TransitionNLL
from gmtool.flow.solvers.gm_sde import independent_draw
from gmtool.flow.spectral import Spectrum, spectral_loss, spectral_nll, transform
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.mixture.knothe_rosenblatt import principal_axes, to_gaussian
from gmtool.nn.spectrum import SpectrumMLP
from gmtool.streams import SampleNoise

SIZE = 8


def white(gaussian):
    return torch.zeros_like(gaussian.mean)


def falling(gaussian):
    """A symmetric spectrum that falls with frequency, of mean power 1."""
    frequency = torch.fft.fftfreq(SIZE, dtype=gaussian.mean.dtype).abs()
    logits = -8 * (frequency[:, None] + frequency[None])
    log_power = torch.log_softmax(logits.flatten(), 0).reshape(SIZE, SIZE) + 2 * torch.tensor(SIZE).log()
    return log_power.expand_as(gaussian.mean)


def one_mixture(batch, components=3, channels=2):
    """The same mixture at every position of every sample."""
    one = random_mixture(0, batch=1, components=components, channels=channels, spatial=(1, 1))
    grid = (batch, -1, -1, SIZE, SIZE)
    return GaussianMixture(one.means.expand(grid), one.log_weights.expand(grid), one.variance.expand(batch, 1, 1, 1, 1))


def test_transform_is_orthonormal_and_its_own_inverse():
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    f = transform(x)
    torch.testing.assert_close(transform(f), x)
    torch.testing.assert_close(f.square().sum(), x.square().sum())
    assert f.is_floating_point()


def test_nll_is_that_of_independent_normal_numbers_less_white_noise():
    noise, log_power = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    f, scale = transform(noise), (0.5 * log_power).exp()
    ratio = torch.distributions.Normal(0.0, 1.0).log_prob(f) - torch.distributions.Normal(0.0, scale).log_prob(f)
    torch.testing.assert_close(spectral_nll(noise, log_power), 3 * ratio.mean((1, 2, 3)))


def test_nll_is_least_at_the_power():
    power = torch.rand(1, 1, 4, 4, dtype=torch.float64) + 0.1
    log_power = power.log().requires_grad_()
    (gradient,) = torch.autograd.grad(spectral_nll(transform(power.sqrt()), log_power).sum(), log_power)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("leading", [1, 2])
@pytest.mark.parametrize("spectrum", [white, falling])
@pytest.mark.slow
def test_draws_keep_the_mixture_at_every_position_and_have_the_spectrum(spectrum, leading):
    count = 250
    mixture = one_mixture(count)
    x = Spectrum(spectrum, leading).draw(mixture, SampleNoise(0, range(count)))
    z = to_gaussian(mixture, x, principal_axes(mixture))
    for channel in range(2):
        # one position per sample: those of a sample depend on each other
        assert stats.kstest(z[:, channel, 2, 3].numpy(), "norm").pvalue > 1e-3
    expected = spectrum(mixture.moment_matched()).exp()[0, 0]
    power = transform(z[:, :leading]).square().mean((0, 1))
    torch.testing.assert_close(
        power / expected, torch.ones_like(power), atol=6 * (2 / (count * leading)) ** 0.5, rtol=0
    )


def test_white_spectral_draws_have_the_moments_of_independent_ones():
    mixture, count = one_mixture(200), 200
    spectral = Spectrum(white, 2).draw(mixture, SampleNoise(0, range(count)))
    independent = independent_draw(mixture, SampleNoise(1, range(count)))
    matched = mixture.moment_matched()
    error = 5 * (matched.variance.max() * 2 / (count * SIZE**2)).sqrt().item()
    for x in (spectral, independent):
        torch.testing.assert_close(x.mean((0, 2, 3)), matched.mean[0, :, 0, 0], atol=error, rtol=0)
        assert x.var((0, 2, 3)).mean().item() == pytest.approx(matched.variance[0].mean().item(), rel=0.05)


@pytest.mark.slow
def test_the_network_learns_the_spectrum_of_the_data():
    """Data drawn with a known spectrum: minimising the loss finds it."""
    torch.manual_seed(0)
    network, mixture = SpectrumMLP((2, SIZE, SIZE)), one_mixture(64, components=2)
    mixture = GaussianMixture(mixture.means.float(), mixture.log_weights.float(), mixture.variance.float())
    x = Spectrum(falling, 2).draw(mixture, SampleNoise(0, range(64)))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    uniform = torch.rand(64, 1, SIZE, SIZE)
    for _ in range(150):
        optimizer.zero_grad()
        spectral_loss(Spectrum(network, 2), mixture, x, uniform).mean().backward()
        optimizer.step()
    output, expected = network(mixture.moment_matched())[0], falling(mixture.moment_matched())[0]
    assert (output - expected).abs().mean() < 0.15 * expected.abs().mean()


def test_the_loss_trains_the_spectrum_alone_in_float32():
    mixture = random_mixture(1, dtype=torch.float32)
    means = mixture.means.clone().requires_grad_()
    learned = torch.zeros(1, 3, 2, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = spectral_loss(
            Spectrum(lambda gaussian: learned.expand_as(gaussian.mean), 3),
            GaussianMixture(means, mixture.log_weights, mixture.variance),
            random_point(2, mixture),
            torch.rand(2, 1, 2, 2),
        )
    assert loss.shape == (2,) and loss.dtype == torch.float32
    loss.sum().backward()
    assert means.grad is None and learned.grad.any()


def test_its_loss_has_a_weight_beside_that_of_the_flow():
    mixture = random_mixture(1, dtype=torch.float32)
    x, z, onward = (random_point(seed, mixture) for seed in (2, 3, 4))
    draws = TransitionDraws(torch.full((len(x),), 0.5), z, onward, torch.rand(len(x), 1, *x.shape[2:]))
    flow, once, eighth = (
        TransitionNLL(0.5, None if weight is None else Spectrum(lambda gaussian: 0.3 * gaussian.mean, 2, weight)).loss(
            lambda x_t, t: mixture, Pairs(x, z), draws
        )
        for weight in (None, 1.0, 0.125)
    )
    torch.testing.assert_close(8 * (eighth - flow), once - flow, rtol=1e-4, atol=1e-5)
    assert (once - flow).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 3)])
def test_latents_of_few_positions_have_a_finite_loss_and_draw(size):
    """One position has no spectrum: its noise is white, and its loss is 0."""
    mixture = random_mixture(3, spatial=size, dtype=torch.float32)
    spectrum = Spectrum(SpectrumMLP((3, *size)), 3)
    loss = spectral_loss(spectrum, mixture, random_point(4, mixture), torch.rand(2, 1, *size))
    assert torch.isfinite(loss).all()
    assert torch.isfinite(spectrum.draw(mixture, SampleNoise(0, range(2)))).all()
    loss.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in spectrum.model.parameters())
    if size == (1, 1):
        assert not loss.any()
