"""Solvers with noise, on one Gaussian: they are affine in the start and the noise, so moments come without sampling."""

import itertools
import math

import pytest
import torch
from toys import exact_posterior, solve, solve_by_name

from gmtool.flow.path import mean_velocity, per_sample
from gmtool.flow.solvers import SOLVERS
from gmtool.flow.solvers.ddim import Ddim
from gmtool.flow.solvers.euler import Euler
from gmtool.flow.times import full_grid
from gmtool.streams import Noise

SDE = [name for name, entry in SOLVERS.items() if entry.on == "velocity" and entry.noisy]


class UnitNoise(Noise):
    """The noise of step n is 1 for sample n (from 1) and 0 for the others."""

    def __init__(self, count):
        self.rows = iter(torch.eye(count, dtype=torch.float64)[1:])

    def normal(self, shape):
        return next(self.rows).reshape(-1, *[1] * len(shape)).expand(-1, *shape)


def gaussian(mean, std):
    """The exact velocity for data N(mean, std^2)."""
    posterior = exact_posterior(torch.tensor([[mean]], dtype=torch.float64), std, torch.ones(1, dtype=torch.float64))
    return lambda x, t: mean_velocity(x, t, posterior(x, t).mixture.mean())


def moments(name, model, steps, shift=1.0):
    """Mean and variance of the samples, exactly: the start is N(0, 1), and every step adds noise of its own.

    Sample 0 sees neither start nor noise, samples 1 ... steps one unit of noise each, the last one a unit of start.
    """
    start = torch.zeros(steps + 2, 1, dtype=torch.float64)
    start[-1] = 1
    ends = solve_by_name(name, model, start, steps, shift, UnitNoise(steps + 2))
    return ends[0].item(), (ends[1:] - ends[0]).square().sum().item()


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", SDE)
def test_moments_of_a_gaussian_come_back_at_the_declared_order(name, shift):
    model, counts = gaussian(0.7, 0.5), (256, 512)
    by_steps = [moments(name, model, steps, shift) for steps in counts]
    errors = [abs(variance - 0.25) for _, variance in by_steps]
    for (steps, error), (more, less) in itertools.pairwise(zip(counts, errors, strict=True)):
        assert math.log(error / less) / math.log(more / steps) == pytest.approx(SOLVERS[name].order, abs=0.3)
    assert all(mean == pytest.approx(0.7, abs=1e-9) for mean, _ in by_steps)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize(("name", "large"), [("ddpm-small", False), ("ddpm-large", True)])
def test_ddpm_follows_the_recursion_of_its_moments(name, large, steps):
    """The published formulas, in states scaled to alpha^2 + sigma^2 = 1: beta, or beta-tilde, is the variance."""
    mean, std, shift = 0.7, 0.5, 2.0
    first, second = 0.0, 1.0
    for t, s in itertools.pairwise(full_grid(steps, shift).tolist()):
        scale_t, scale_s = math.hypot(1 - t, t), math.hypot(1 - s, s)
        bar_t, bar_s = ((1 - t) / scale_t) ** 2, ((1 - s) / scale_s) ** 2
        beta = 1 - bar_t / bar_s
        pull_data, pull_state = math.sqrt(bar_s) * beta / (1 - bar_t), math.sqrt(1 - beta) * (1 - bar_s) / (1 - bar_t)
        gain = math.sqrt(bar_t) * std**2 / (bar_t * std**2 + 1 - bar_t)  # E[x | state] = mean + gain (state - ...)
        rate = pull_state + pull_data * gain
        first = pull_state * first + pull_data * (mean + gain * (first - math.sqrt(bar_t) * mean))
        added = beta if large else beta * (1 - bar_s) / (1 - bar_t)
        second = rate**2 * second + (added if s > 0 else 0)
    drawn = moments(name, gaussian(mean, std), steps, shift)
    assert drawn == pytest.approx((first, second), abs=1e-12)


def test_small_variance_is_exact_for_data_of_one_value():
    """Up to the last step, which gives the value itself: so a state on the way is compared with N((1 - t) x, t^2)."""
    value, steps = -0.4, 4
    states = []

    def model(x, t):
        states.append((t[0].item(), x))
        return mean_velocity(x, t, torch.full_like(x, value))

    mean, variance = moments("ddpm-small", model, steps)
    assert (mean, variance) == pytest.approx((value, 0), abs=1e-12)
    for time, x in states[1:]:
        assert x[0].item() == pytest.approx((1 - time) * value, abs=1e-12)
        assert (x[1:] - x[0]).square().sum().item() == pytest.approx(time**2, abs=1e-12)


def test_large_variance_is_exact_for_standard_normal_data():
    """On the way the states are N(0, (1 - t)^2 + t^2), whatever the number of steps."""
    states = []

    def model(x, t):
        states.append((t, x))
        return gaussian(0.0, 1.0)(x, t)

    moments("ddpm-large", model, 4)
    for t, x in states:
        assert (x[1:] - x[0]).square().sum().item() == pytest.approx((1 - t[0].item()) ** 2 + t[0].item() ** 2)


@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_ddim_is_euler_on_the_linear_path(shift):
    """For any velocity field."""
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    field = lambda x, t: torch.sin(3 * x) - per_sample(t, x) * x.square()  # noqa: E731
    torch.testing.assert_close(solve(Ddim(), field, x, 7, shift), solve(Euler(), field, x, 7, shift))
