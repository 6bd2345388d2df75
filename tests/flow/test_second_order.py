"""Guided steps of the second order against the formulas of GMFlow (section 3.4, appendices A.3 and A.4) written out."""

import itertools
import math

import pytest
import torch
from toys import exact_posterior, solve

from gmtool.flow.guidance.probabilistic import Probabilistic
from gmtool.flow.model import unguided
from gmtool.flow.path import mean_velocity
from gmtool.flow.solvers.gm_ode import GmOde
from gmtool.flow.solvers.gm_sde import GmSde
from gmtool.flow.times import expand, full_grid
from gmtool.mixture.gaussian_mixture import GaussianMixture, IsotropicGaussian, power
from gmtool.streams import Noise

SIZES = pytest.mark.parametrize(
    ("components", "channels", "spatial"), [(6, 2, ()), (3, 40, (2,)), (1, 3, (2, 2)), (20, 4, (3,))]
)
SCALES = pytest.mark.parametrize("scale", [0.0, 0.3, 0.8])


def network(seed, components, channels):
    """A mixture that is not quite the posterior of any data, so that the second order has something to correct."""
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randn(components, channels, dtype=torch.float64, generator=draw) * (2 / channels) ** 0.5
    weights = torch.rand(components, dtype=torch.float64, generator=draw) + 0.1
    exact = exact_posterior(centers, 0.4, weights / weights.sum())

    def model(x, t):
        base = exact(x, t).base
        return unguided(
            GaussianMixture(base.means + 0.3 * torch.sin(3 * x).unsqueeze(1), base.log_weights, base.variance)
        )

    return model


def guided(model, other, scale):
    """The model as the solvers take it."""
    if not scale:
        return model
    return Probabilistic(scale)(model, lambda x, t: mean_velocity(x, t, other(x, t).base.mean()))


def average(x):
    """<x>, a number per sample."""
    return x.flatten(1).mean(1).reshape(-1, *[1] * (x.dim() - 1))


def reweighted(mixture, new, old):
    """mixture N(new) / N(old), each a mean and a variance."""
    return mixture.times(power(IsotropicGaussian(*new), 1).times(power(IsotropicGaussian(*old), -1)))


def seen_at(mixture, x_t, t, x_r, r):
    """q(x | x_r) of q(x | x_t): times N(g, w), the quotient of both likelihoods of x."""
    if r == t:
        return mixture
    d = ((1 - r) * t) ** 2 - ((1 - t) * r) ** 2
    g = ((1 - r) * t**2 * x_r - (1 - t) * r**2 * x_t) / d
    return mixture.times(power(IsotropicGaussian(g, torch.full_like(g[:, :1], (r * t) ** 2 / d)), 1))


def both_mixtures(base, away, scale, before, h, h_before):
    """The guided mixture, and the one that the second order makes of it."""
    own = base.moment_matched()
    mean, variance = own.mean, average(own.variance)
    bias, first = torch.zeros_like(mean), base
    if scale:
        e = mean - away
        e = e - average(e * mean) / average(mean**2) * mean
        bias = e * scale * (variance / average(e**2)).sqrt()
        first = reweighted(base, (mean + bias, variance * (1 - scale**2)), (mean, variance))
    if before is None:
        return first, first
    root = (1 - variance * (scale**2 + 0.005) / h_before**2).clamp(min=0).sqrt()
    total = (first.mean() - before) * (0.5 * h / h_before) * root + bias
    power_of_total = average(total**2)
    total = total * (variance / power_of_total).sqrt().clamp(max=1)
    narrowed = variance * (1 - power_of_total / variance).clamp(min=1e-6)
    return first, reweighted(base, (mean + total, narrowed), (mean, variance))


@SIZES
@SCALES
@pytest.mark.parametrize(("substeps", "shift"), [(1, 1.0), (4, 2.0)])
def test_gm_ode_takes_the_published_steps(components, channels, spatial, scale, substeps, shift):
    model, other = network(0, components, channels), network(1, components, channels)
    noise = torch.randn(2, channels, *spatial, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    steps, fine = 4, full_grid(4 * substeps, shift).tolist()
    x, before, remembered, h_before = noise, None, None, None
    for i in range(steps):
        times = fine[i * substeps : (i + 1) * substeps + 1]
        t, now = times[0], expand(times[0], x)
        if remembered is not None:
            before = seen_at(*remembered, x, t).mean()
        h = t - times[-1]
        first, mixture = both_mixtures(model(x, now).base, other(x, now).base.mean(), scale, before, h, h_before)
        remembered, h_before, x_t = (first, x, t), h, x
        for r, after in itertools.pairwise(times):
            x = x + (x - seen_at(mixture, x_t, t, x, r).mean()) / r * (after - r)
    end = solve(GmOde(2, substeps, shift), guided(model, other, scale), noise, steps, shift)
    torch.testing.assert_close(end, x, atol=1e-9, rtol=1e-9)
    change = (solve(GmOde(1, substeps, shift), guided(model, other, scale), noise, steps, shift) - x).abs().max()
    assert change < 1e-12 if (scale, shift) == (0.8, 2.0) else change > 1e-3  # these steps are damped altogether


class Given(Noise):
    """Numbers that the test chooses, one tensor per call."""

    def __init__(self, uniforms, normals):
        self.uniforms, self.normals = iter(uniforms), iter(normals)

    def uniform(self, shape):
        return next(self.uniforms)

    def normal(self, shape):
        return next(self.normals)


@SIZES
@SCALES
def test_gm_sde_2_has_the_published_transition(components, channels, spatial, scale):
    """Given x_t, x_s is a mixture: of the weights, and with the means and variances, that the formulas give.

    With the uniform number in the middle of a component's share, the third of three steps is affine in its normal
    numbers: one sample sees none of them, and each other sample a single one, which gives a column of the map.
    """
    model, other = network(0, components, channels), network(1, components, channels)
    draw = torch.Generator().manual_seed(3)
    numbers = channels * math.prod(spatial)
    count = 1 + 2 * numbers
    shape = (count, channels, *spatial)

    def shared(*size):
        return torch.randn(1, *size, dtype=torch.float64, generator=draw).expand(count, *size)

    units = torch.eye(count, dtype=torch.float64)[:, 1:]
    first_units, second_units = units[:, :numbers].reshape(shape), units[:, numbers:].reshape(shape)
    times, solver, whole = full_grid(4, 2.0).tolist(), GmSde(2), guided(model, other, scale)
    x, state, steps = shared(channels, *spatial), None, []
    for t, s in itertools.pairwise(times[:3]):
        half = torch.full((count, 1, *spatial), 0.5, dtype=torch.float64)
        steps.append((x[:1], t))
        noise = Given([half], [shared(channels, *spatial), shared(channels, *spatial)])
        x, state = solver.step(whole, x, t, s, state, noise)

    (x_before, t_before), (t, s) = steps[-1], times[2:4]
    x_t = x[:1]
    then, now = expand(t_before, x_t), expand(t, x_t)
    # what is remembered is the guided mixture of the step before, without its own correction
    remembered, _ = both_mixtures(
        model(x_before, then).base, other(x_before, then).base.mean(), scale, None, None, None
    )
    before = seen_at(remembered, x_before, t_before, x_t, t).mean()
    _, mixture = both_mixtures(model(x_t, now).base, other(x_t, now).base.mean(), scale, before, t - s, t_before - t)
    ratio, fade = s / t, (1 - t) / (1 - s)
    gain = 1 - (ratio * fade) ** 2
    weights = mixture.log_weights.exp()
    variance = ((gain * (1 - s)) ** 2 * mixture.variance + gain * s**2)[0, 0]
    for k in range(components):
        middle = (weights.cumsum(1)[:, k] - 0.5 * weights[:, k]).expand(count, 1, *spatial)
        stepped, _ = solver.step(whole, x, t, s, state, Given([middle], [first_units, second_units]))
        expected = ratio**2 * fade * x_t + gain * (1 - s) * mixture.means[:, k]
        torch.testing.assert_close(stepped[:1], expected, atol=1e-9, rtol=1e-9)
        columns = (stepped[1:] - stepped[:1]).flatten(1)
        widths = variance.expand(channels, *spatial).flatten().diag()
        torch.testing.assert_close(columns.T @ columns, widths, atol=1e-9, rtol=1e-9)
