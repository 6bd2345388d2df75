import itertools
import math
from typing import get_args

import golden
import pytest
import torch
from scipy.integrate import solve_ivp
from toys import exact_posterior

from gmtool.flow.guidance.probabilistic import probabilistic
from gmtool.flow.path import mean_velocity
from gmtool.flow.prediction import unguided
from gmtool.flow.solvers.mixture import gm_ode, gm_sde, mean_at
from gmtool.flow.solvers.substeps import axes_of, span_of
from gmtool.flow.solvers.table import VELOCITY_SOLVERS, OdeSolver, integrate
from gmtool.flow.solvers.velocity import euler
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.stages.sample.config import VelocitySolver
from gmtool.streams import Noise

G = golden.arrays("gmflow_math")
CENTERS = torch.tensor([[-1.0, 0.5], [1.0, 0.8], [0.3, -1.2]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
STD = 0.4
MODEL = exact_posterior(CENTERS, STD, WEIGHTS)


def exact_velocity(x, t):
    return mean_velocity(x, t.clamp(min=1e-9), MODEL(x, t.clamp(min=1e-9)).mixture.mean())


def start(count=8):
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def truth(x):
    """The probability-flow ODE from t = 1 to 0 by an adaptive solver of order 8."""

    def field(time, flat):
        point = torch.as_tensor(flat).reshape(x.shape)
        return exact_velocity(point, torch.full((len(x),), time, dtype=torch.float64)).flatten().numpy()

    solution = solve_ivp(field, (1, 1e-6), x.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-12)
    almost = torch.as_tensor(solution.y[:, -1]).reshape(x.shape)
    return almost - 1e-6 * exact_velocity(almost, torch.full((len(x),), 1e-6, dtype=torch.float64))


def slope(solve, steps):
    """The measured order: the slope of log error against log step."""
    x = start()
    expected = truth(x)
    errors = [(solve(x, n) - expected).norm().item() for n in steps]
    return [math.log(a / b) / math.log(m / n) for (n, a), (m, b) in itertools.pairwise(zip(steps, errors, strict=True))]


def test_mean_at_another_point_matches_the_reference():
    found = mean_at(golden.predicted(G), G["x_t"], G["t"], G["x_s"], G["s"])
    torch.testing.assert_close(found, G["x0_mean_at_s"], **golden.TOLERANCE)


@pytest.mark.parametrize("coordinates", [axes_of, span_of])
@pytest.mark.parametrize("run", golden.runs(), ids=lambda run: f"run{run['run']}")
def test_whole_runs_match_the_reference(run, coordinates, monkeypatch):
    monkeypatch.setattr("gmtool.flow.solvers.substeps.coordinates_of", coordinates)
    std = float(G["data_std"])
    model = exact_posterior(G["data_centers"], std, G["data_weights"])
    if run["guidance_scale"]:
        conditional = exact_posterior(G["data_centers"], std, G["data_cond_weights"])
        model = probabilistic(conditional, model, run["guidance_scale"], run["orthogonal"])
    found = gm_ode(model, G["noise"], run["steps"], run["shift"], run["order"], run["substeps"])
    torch.testing.assert_close(found, G[f"run{run['run']}_x"], **golden.TOLERANCE)


@pytest.mark.parametrize("name", [name for name, each in VELOCITY_SOLVERS.items() if isinstance(each, OdeSolver)])
def test_solvers_have_their_declared_order(name):
    # even counts: a closing Euler step of heun onto t = 0 would leave an error of order 2 in the step's own length only
    # large counts: the error of dpmpp-2m is steps^-2 log(steps)
    solver = VELOCITY_SOLVERS[name]
    for order in slope(lambda x, n: solver.solve(exact_velocity, x, n, 1.0), (256, 512, 1024)):
        assert order == pytest.approx(solver.order, abs=0.25)


def test_gm_ode_with_many_substeps_follows_the_exact_flow_in_one_evaluation():
    x, calls = start(), []

    def model(x_t, t):
        calls.append(t)
        return MODEL(x_t, t)

    found = gm_ode(model, x, 1, 1.0, order=1, substeps=4096)
    assert len(calls) == 1
    torch.testing.assert_close(found, truth(x), atol=1e-3, rtol=0)


def one_gaussian(x, t):
    """The exact posterior's moment-matched Gaussian: a mixture head of one component, perfectly trained."""
    gaussian = MODEL(x, t).mixture.moment_matched()
    log_weights = torch.zeros_like(gaussian.variance).unsqueeze(1)
    return unguided(GaussianMixture(gaussian.mean.unsqueeze(1), log_weights, gaussian.variance.unsqueeze(1)))


@pytest.mark.parametrize("substeps", [1, 8])
def test_gm_ode_1_has_order_1_in_network_evaluations(substeps):
    for order in slope(lambda x, n: gm_ode(one_gaussian, x, n, 1.0, 1, substeps), (16, 32, 64)):
        assert order == pytest.approx(1, abs=0.1)


def test_gm_ode_2_gains_an_order_but_for_its_damping(monkeypatch):
    """With sub-steps that leave no error of their own. GMFlow's damping fades the correction out in small steps."""
    x = start(32)
    expected = truth(x)

    def error(steps, order):
        return (gm_ode(one_gaussian, x, steps, 1.0, order, 256 // steps) - expected).norm()

    assert error(8, 2) < 0.5 * error(8, 1)
    monkeypatch.setattr("gmtool.flow.solvers.mixture.DAMPING_ADDED", 0.0)
    assert error(16, 2) < error(8, 2) / 2**1.4 < error(4, 2) / 2**2.8


def test_gm_ode_2_converges_where_its_steps_are_many():
    """The floor in a quotient of Gaussians must not act beside variances that are as small."""
    x = start()
    expected = truth(x)
    few, many = ((gm_ode(one_gaussian, x, steps, 1.0, order=2) - expected).norm() for steps in (32, 512))
    assert many < few / 8


def test_gm_ode_is_the_same_however_its_substeps_are_split():
    """With the exact posterior a network evaluation brings nothing that the sub-steps did not know."""
    x = start()
    torch.testing.assert_close(gm_ode(MODEL, x, 4, 1.0, substeps=16), gm_ode(MODEL, x, 1, 1.0, substeps=64))


def test_gm_ode_with_one_substep_is_euler():
    x = start()
    found = gm_ode(MODEL, x, 9, 3.0, order=1, substeps=1)
    torch.testing.assert_close(found, euler(exact_velocity, x, 9, 3.0))


class OneStream(Noise):
    """All samples' numbers from one stream, which is fast for many."""

    def __init__(self, count):
        self.count, self.stream = count, torch.Generator().manual_seed(2)

    def normal(self, shape):
        return torch.randn(self.count, *shape, generator=self.stream)

    def uniform(self, shape):
        return torch.rand(self.count, *shape, generator=self.stream)


@pytest.mark.parametrize("order", [1, 2])
def test_gm_sde_draws_from_the_data(order):
    """With the exact posterior every ancestral step is exact: one mixture's moments come back."""
    count = 40_000
    draw = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    found = gm_sde(MODEL, draw, 16 if order == 2 else 4, 1.0, OneStream(count), order)
    mean = (WEIGHTS[:, None] * CENTERS).sum(0)
    variance = STD**2 + (WEIGHTS[:, None] * (CENTERS - mean).square()).sum(0)
    tolerance = 0.02 if order == 1 else 0.06  # the second order is a correction, not exact
    torch.testing.assert_close(found.mean(0), mean, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.var(0), variance, atol=tolerance, rtol=0)


PAIR = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
"""Covariance of data on two positions, which a mixture at each position cannot express."""


def pair_posterior(x, t):
    """The exact posterior of each position of N(0, PAIR) alone."""
    kept = 1 - t[0]
    gain = kept * torch.linalg.solve(kept**2 * PAIR + t[0] ** 2 * torch.eye(2), PAIR).T
    mean = (x[:, 0] @ gain.T)[:, None, None]
    variance = (PAIR - kept * gain @ PAIR).diagonal().mean().expand(len(x), 1, 1, 1)
    return unguided(GaussianMixture(mean, torch.zeros_like(mean), variance))


class UnitNoise(Noise):
    """Sample 2 c + j sees 1 as entry j of the c-th normal draw, and else 0: the columns of a linear map."""

    def __init__(self, draws):
        self.rows = torch.eye(2 * draws).split(2, dim=1)
        self.draw = iter(self.rows)

    def normal(self, shape):
        return next(self.draw).reshape(-1, *shape)

    def uniform(self, shape):
        return torch.full((2 * len(self.rows), *shape), 0.5)


def test_gm_sde_1_has_order_1_where_positions_depend_on_each_other():
    """x is linear in all normal draws, so that its covariance is known without sampling."""
    errors = []
    for steps in (16, 32, 64):
        noise = UnitNoise(1 + 2 * steps)
        x = gm_sde(pair_posterior, noise.normal((1, 2)).double(), steps, 1.0, noise)[:, 0]
        errors.append((x.T @ x - PAIR).norm().item())
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([0.95, 0.98], abs=0.02)


def test_gm_sde_2_gains_an_order_but_for_its_damping(monkeypatch):
    monkeypatch.setattr("gmtool.flow.solvers.mixture.DAMPING_ADDED", 0.0)
    count = 100_000

    def error(steps, order):
        noise = OneStream(count)
        x = gm_sde(pair_posterior, noise.normal((1, 2)).double(), steps, 1.0, noise, order)[:, 0]
        return (x.T @ x / count - PAIR).norm().item()

    assert error(8, 1) < 0.6 * error(4, 1)
    assert error(8, 2) < 0.36 * error(4, 2)
    assert error(8, 2) < 0.25 * error(8, 1)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
@pytest.mark.parametrize("name", VELOCITY_SOLVERS)
def test_solvers_count_network_evaluations(name, steps):
    calls = []

    def model(x, t):
        calls.append(t)
        return exact_velocity(x, t)

    found = integrate(name, model, start(), steps, 1.0, Noise(0, range(8)))
    assert len(calls) == steps
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "unipc", "heun", "ddpm-small", "ddpm-large", "dpmpp-2m-sde"])
def test_one_step_is_one_euler_step(name):
    """From t = 1 onto t = 0 every solver gives the mean of the data seen at pure noise."""
    x = start()
    found = integrate(name, exact_velocity, x, 1, 1.0, Noise(0, range(8)))
    torch.testing.assert_close(found, euler(exact_velocity, x, 1, 1.0))


def test_samples_do_not_depend_on_the_batch():
    seeds = range(6)
    together = gm_sde(MODEL, start(6), 4, 1.0, Noise(3, seeds), 2)
    alone = [gm_sde(MODEL, start(6)[i : i + 1], 4, 1.0, Noise(3, [i]), 2) for i in seeds]
    torch.testing.assert_close(together, torch.cat(alone))


def guided(weights, order=(0, 1, 2)):
    """Exact models of the data, guided towards other weights; the components in some order."""
    chosen = list(order)
    unconditional = exact_posterior(CENTERS[chosen], STD, WEIGHTS[chosen])
    return probabilistic(exact_posterior(CENTERS[chosen], STD, weights[chosen]), unconditional, 0.3)


def test_whole_runs_depend_neither_on_the_batch_nor_on_the_order_of_components():
    weights = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    together = gm_ode(guided(weights), start(5), 4, 2.0, 2, 3)
    alone = [gm_ode(guided(weights), start(5)[i : i + 1], 4, 2.0, 2, 3) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(together, gm_ode(guided(weights, (2, 0, 1)), start(5), 4, 2.0, 2, 3))


@pytest.mark.parametrize("name", VELOCITY_SOLVERS)
def test_samples_of_a_velocity_do_not_depend_on_the_batch(name):
    seeds = range(6)
    together = integrate(name, exact_velocity, start(6), 5, 1.0, Noise(3, seeds))
    alone = [integrate(name, exact_velocity, start(6)[i : i + 1], 5, 1.0, Noise(3, [i])) for i in seeds]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_table_holds_every_solver_of_the_command_line():
    assert set(VELOCITY_SOLVERS) == set(get_args(VelocitySolver))
