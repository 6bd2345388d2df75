import golden
import pytest
import torch
from toys import exact_posterior, random_mixture, random_point

from gmtool.flow.path import (
    bridge_factor,
    data_mixture,
    forward_transition,
    interpolate,
    mean_velocity,
    per_sample,
    reverse_transition,
    transition_mixture,
    velocity,
)
from gmtool.mixture.gaussian_mixture import GaussianMixture

G = golden.arrays("gmflow_math")


def test_data_mixture_matches_the_reference():
    mixture, expected = golden.predicted(G), golden.mixture(G, "x0")
    torch.testing.assert_close(mixture.means, expected.means, **golden.TOLERANCE)
    torch.testing.assert_close(mixture.variance, expected.variance, **golden.TOLERANCE)
    torch.testing.assert_close(mixture.log_weights, expected.log_weights, **golden.TOLERANCE)


def test_transition_mixture_matches_the_reference():
    mixture = transition_mixture(golden.predicted(G), G["x_t"], G["t"], G["s"])
    expected = golden.mixture(G, "trans")
    torch.testing.assert_close(mixture.means, expected.means, **golden.TOLERANCE)
    torch.testing.assert_close(mixture.variance, expected.variance, **golden.TOLERANCE)


def test_reverse_transition_matches_the_reference_draw():
    t, s = torch.full((2,), G["sde_t"].item()), torch.full((2,), G["sde_s"].item())
    step = reverse_transition(G["x_t"], t, s)
    x_s = step.from_x_t * G["x_t"] + step.from_x * G["sde_x0"] + step.variance.sqrt() * G["sde_noise"]
    torch.testing.assert_close(x_s, G["sde_x_s"], **golden.TOLERANCE)


def test_velocity_is_the_derivative_of_the_path():
    x, z = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    _, derivative = torch.func.jvp(lambda time: interpolate(x, z, time), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(derivative, velocity(x, z))


def test_bayes_rule_between_prior_transition_and_posterior():
    """q(x_s | x) q(x_t | x_s) = q(x_t | x) q(x_s | x, x_t), as functions of x_s."""
    x, x_t = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    s, t = torch.tensor([0.2, 0.5], dtype=torch.float64), torch.tensor([0.6, 0.9], dtype=torch.float64)
    step = reverse_transition(x_t, t, s)
    early, late = per_sample(s, x), per_sample(t, x)
    ratio = (1 - late) / (1 - early)
    width = late**2 - (ratio * early) ** 2

    def gap(x_s):
        prior = (x_s - (1 - early) * x) ** 2 / early**2 + (x_t - ratio * x_s) ** 2 / width
        posterior = (x_s - step.from_x_t * x_t - step.from_x * x) ** 2 / step.variance
        return prior - posterior

    torch.testing.assert_close(gap(torch.zeros_like(x)), gap(torch.ones_like(x)))
    torch.testing.assert_close(gap(torch.zeros_like(x)), gap(-3 * torch.ones_like(x)))


def test_two_forward_transitions_are_one():
    """Means a b x and variances add up: x_r -> x_s -> x_t has the law of x_r -> x_t."""
    x = torch.ones(1, 1, dtype=torch.float64)
    r, s, t = (torch.tensor([value], dtype=torch.float64) for value in (0.2, 0.5, 0.8))
    zero, one = torch.zeros_like(x), torch.ones_like(x)

    def mean_and_std(start, stop):
        mean = forward_transition(x, start, stop, zero)
        return mean, forward_transition(x, start, stop, one) - mean

    (first, width1), (second, width2), (both, width) = mean_and_std(r, s), mean_and_std(s, t), mean_and_std(r, t)
    torch.testing.assert_close(first * second, both)
    torch.testing.assert_close(second**2 * width1**2 + width2**2, width**2)


def test_the_transition_of_a_transition_is_the_transition():
    """For the exact posterior, q(x_r | x_t) = E over q(x_s | x_t) of q(x_r | x_s): equal means."""
    model = exact_posterior(torch.tensor([[0.4, -0.3]], dtype=torch.float64), 0.5, torch.ones(1, dtype=torch.float64))
    x_t = torch.tensor([[1.2, -0.7]], dtype=torch.float64)
    r, s, t = (torch.tensor([value], dtype=torch.float64) for value in (0.2, 0.5, 0.9))
    direct = transition_mixture(model(x_t, t).mixture, x_t, t, r).mean()
    # one Gaussian: q(x_r | x_s) has a mean linear in x_s, so its mean over x_s is taken at the mean
    x_s = transition_mixture(model(x_t, t).mixture, x_t, t, s).mean()
    torch.testing.assert_close(transition_mixture(model(x_s, s).mixture, x_s, s, r).mean(), direct)


def test_posteriors_of_a_mixture_chain_to_the_one_of_both_steps():
    """q(x_r | x_t) = integral of q(x_r | x_s) q(x_s | x_t) over x_s, as densities, for data of three components."""
    centers = torch.tensor([[-1.0], [0.2], [1.1]], dtype=torch.float64)
    model = exact_posterior(centers, 0.3, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))
    r, s, t = (torch.tensor([value], dtype=torch.float64) for value in (0.25, 0.5, 0.8))
    x_t = torch.tensor([[0.4]], dtype=torch.float64)
    x_r = torch.linspace(-2, 2, 9, dtype=torch.float64)
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)

    def transition(point, start, stop, to):
        """The density at each of ``to`` (n,) from each point (m, 1): (m, n)."""
        times = (time.expand(len(point)) for time in (start, stop))
        early, late = next(times), next(times)
        mixture = transition_mixture(model(point, early).mixture, point, early, late)
        return torch.stack([mixture.log_density(part.expand_as(point)) for part in to], 1).exp()

    direct = transition(x_t, t, r, x_r)
    step = grid[1] - grid[0]
    chained = step * transition(x_t, t, s, grid) @ transition(grid.unsqueeze(1), s, r, x_r)
    torch.testing.assert_close(chained, direct, atol=1e-9, rtol=1e-7)


def test_the_score_is_that_of_the_marginal_by_autograd():
    """grad log p_t = (alpha E[x | x_t] - x_t) / sigma^2, and the flow's velocity follows from it."""
    centers = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights, std = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), 0.3
    x_t = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    alpha, sigma = (1 - t).reshape(5, 1), t.reshape(5, 1)
    marginal = GaussianMixture(
        alpha.unsqueeze(1) * centers,
        weights.log().reshape(1, 3, 1).expand(5, -1, -1),
        ((alpha * std) ** 2 + sigma**2).unsqueeze(1),
    )
    (score,) = torch.autograd.grad(marginal.log_density(x_t).sum(), x_t)
    mean = exact_posterior(centers, std, weights)(x_t, t).mixture.mean()
    torch.testing.assert_close((alpha * mean - x_t) / sigma**2, score)
    noise, data = -sigma * score, (x_t + sigma**2 * score) / alpha
    torch.testing.assert_close(mean_velocity(x_t, t, mean), velocity(data, noise))


def test_bridge_turns_one_exact_posterior_into_another():
    centers = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = exact_posterior(centers, 0.3, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))
    x_t, x_r = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    t, r = torch.full((4,), 0.9, dtype=torch.float64), torch.full((4,), 0.4, dtype=torch.float64)
    mixture = model(x_t, t).mixture
    seen_from_r, expected = mixture.times(bridge_factor(x_r, r, x_t, t, mixture.mean())), model(x_r, r).mixture
    torch.testing.assert_close(seen_from_r.means, expected.means)
    torch.testing.assert_close(seen_from_r.log_weights, expected.log_weights)
    torch.testing.assert_close(seen_from_r.variance.expand_as(expected.variance), expected.variance)


def test_bridge_to_the_same_point_is_flat():
    mixture = random_mixture(0)
    x, t = random_point(1, mixture), torch.tensor([0.3, 1.0], dtype=torch.float64)
    factor = bridge_factor(x, t, x, t, mixture.mean())
    assert (factor.precision == 0).all() and (factor.shift == 0).all()


def test_data_mixture_at_time_zero_is_the_point():
    mixture = random_mixture(0)
    x = random_point(1, mixture)
    at_data = data_mixture(mixture, x, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(at_data.mean(), x)
    assert (at_data.variance == 0).all()


def test_times_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="one time per sample"):
        per_sample(torch.zeros(3), torch.zeros(2, 4))
