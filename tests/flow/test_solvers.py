import functools
import itertools
import math

import golden
import pytest
import torch
from scipy.integrate import solve_ivp
from toys import exact_posterior, solve, solve_by_name

from gmtool.flow.guidance.probabilistic import Probabilistic
from gmtool.flow.model import unguided
from gmtool.flow.path import mean_velocity, per_sample
from gmtool.flow.posterior import DirectPosterior
from gmtool.flow.solvers import SOLVERS, SolverEntry, names_on
from gmtool.flow.solvers.base import Memoryless, SolverOptions, integrate
from gmtool.flow.solvers.euler import Euler
from gmtool.flow.solvers.gm_ode import GmOde
from gmtool.flow.solvers.gm_sde import GmSde
from gmtool.flow.solvers.second_order import Damping
from gmtool.flow.times import expand, full_grid
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.streams import Noise, SampleNoise, SharedNoise, generator

G = golden.arrays("gmflow_math")
CENTERS = torch.tensor([[-1.0, 0.5], [1.0, 0.8], [0.3, -1.2]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
STD = 0.4
MODEL = exact_posterior(CENTERS, STD, WEIGHTS)
UNDAMPED = Damping(added=0.0)
VELOCITY = names_on("velocity")


def velocity_of(model):
    """The velocity of a model of a mixture; onto t = 0 by its limit."""

    def velocity(x, t):
        t = t.clamp(min=1e-9)
        return mean_velocity(x, t, model(x, t).mixture.mean())

    return velocity


exact_velocity = velocity_of(MODEL)


def start(count=8):
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@functools.cache
def truth(count=8):
    """The probability-flow ODE from `start`, t = 1, to 0 by an adaptive solver of order 8."""
    x = start(count)

    def field(time, flat):
        point = torch.as_tensor(flat).reshape(x.shape)
        return exact_velocity(point, torch.full((len(x),), time, dtype=torch.float64)).flatten().numpy()

    solution = solve_ivp(field, (1, 1e-6), x.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-12)
    almost = torch.as_tensor(solution.y[:, -1]).reshape(x.shape)
    return almost - 1e-6 * exact_velocity(almost, torch.full((len(x),), 1e-6, dtype=torch.float64))


def slope(solution, steps):
    """The measured order: the slope of log error against log step."""
    x = start()
    expected = truth()
    errors = [(solution(x, n) - expected).norm().item() for n in steps]
    return [math.log(a / b) / math.log(m / n) for (n, a), (m, b) in itertools.pairwise(zip(steps, errors, strict=True))]


def test_mean_at_another_point_matches_the_reference():
    mixture, t, s = golden.predicted(G), G["t"].tolist(), G["s"].tolist()
    for i in range(len(t)):
        one = GaussianMixture(mixture.means[i : i + 1], mixture.log_weights[i : i + 1], mixture.variance[i : i + 1])
        mean = DirectPosterior(one, G["x_t"][i : i + 1], t[i]).mean_at(G["x_s"][i : i + 1], s[i])
        torch.testing.assert_close(mean, G["x0_mean_at_s"][i : i + 1], **golden.TOLERANCE)


@pytest.mark.parametrize("run", golden.runs(), ids=lambda run: f"run{run['run']}")
def test_whole_runs_match_the_reference(run):
    std = float(G["data_std"])
    model = exact_posterior(G["data_centers"], std, G["data_weights"])
    if run["guidance_scale"]:
        scheme = Probabilistic(run["guidance_scale"], run["orthogonal"])
        model = scheme(exact_posterior(G["data_centers"], std, G["data_cond_weights"]), velocity_of(model))
    solver = GmOde(run["order"], run["substeps"], run["shift"])
    end = solve(solver, model, G["noise"], run["steps"], run["shift"])
    torch.testing.assert_close(end, G[f"run{run['run']}_x"], **golden.TOLERANCE)


@pytest.mark.parametrize("name", [name for name in VELOCITY if not SOLVERS[name].noisy])
def test_solvers_have_their_declared_order(name):
    # even counts: a closing Euler step of heun onto t = 0 would leave an error of order 2 in the step's own length only
    # large counts: the error of dpmpp-2m is steps^-2 log(steps)
    for order in slope(lambda x, n: solve_by_name(name, exact_velocity, x, n), (128, 256, 512)):
        assert order == pytest.approx(SOLVERS[name].order, abs=0.3)


def test_gm_ode_with_many_substeps_follows_the_exact_flow_in_one_evaluation():
    x, calls = start(), []

    def model(x_t, t):
        calls.append(t)
        return MODEL(x_t, t)

    end = solve(GmOde(order=1, substeps=4096), model, x, 1)
    assert len(calls) == 1
    torch.testing.assert_close(end, truth(), atol=1e-3, rtol=0)


def one_gaussian(x, t):
    """The exact posterior's moment-matched Gaussian: a mixture head of one component, perfectly trained."""
    gaussian = MODEL(x, t).mixture.moment_matched()
    log_weights = torch.zeros_like(gaussian.variance).unsqueeze(1)
    return unguided(GaussianMixture(gaussian.mean.unsqueeze(1), log_weights, gaussian.variance.unsqueeze(1)))


@pytest.mark.parametrize("substeps", [1, 8])
def test_gm_ode_1_has_order_1_in_network_evaluations(substeps):
    for order in slope(lambda x, n: solve(GmOde(1, substeps), one_gaussian, x, n), (16, 32, 64)):
        assert order == pytest.approx(1, abs=0.1)


def test_gm_ode_2_gains_an_order_but_for_its_damping():
    """With sub-steps that leave no error of their own. GMFlow's damping fades the correction out in small steps."""
    x = start(32)
    expected = truth(32)

    def error(steps, order, damping=Damping()):
        return (solve(GmOde(order, 256 // steps, damping=damping), one_gaussian, x, steps) - expected).norm()

    assert error(8, 2) < 0.5 * error(8, 1)
    assert error(16, 2, UNDAMPED) < error(8, 2, UNDAMPED) / 2**1.4 < error(4, 2, UNDAMPED) / 2**2.8


def test_gm_ode_2_converges_where_its_steps_are_many():
    """The floor in a quotient of Gaussians must not act beside variances that are as small."""
    x = start()
    expected = truth()
    few, many = ((solve(GmOde(), one_gaussian, x, steps) - expected).norm() for steps in (32, 256))
    assert many < few / 4


@pytest.mark.parametrize(("order", "tolerance"), [(1, 1e-12), (2, 1e-4)])  # the second order has floors of 1e-6
def test_gm_ode_is_the_same_however_its_substeps_are_split(order, tolerance):
    """With the exact posterior a network evaluation brings nothing that the sub-steps did not know."""
    x = start()
    together, split = (solve(GmOde(order, 64 // steps), MODEL, x, steps) for steps in (1, 4))
    torch.testing.assert_close(together, split, atol=tolerance, rtol=0)


def test_gm_ode_with_one_substep_is_euler():
    x = start()
    end = solve(GmOde(order=1, substeps=1), MODEL, x, 9, 3.0)
    torch.testing.assert_close(end, solve(Euler(), exact_velocity, x, 9, 3.0))


@pytest.mark.parametrize("order", [1, 2])
def test_gm_sde_draws_from_the_data(order):
    """With the exact posterior every ancestral step is exact: one mixture's moments come back."""
    count = 40_000
    draw = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    noise = SharedNoise(count, generator(2))
    end = solve(GmSde(order), MODEL, draw, 16 if order == 2 else 4, noise=noise)
    mean = (WEIGHTS[:, None] * CENTERS).sum(0)
    variance = STD**2 + (WEIGHTS[:, None] * (CENTERS - mean).square()).sum(0)
    tolerance = 0.02 if order == 1 else 0.06  # the second order is a correction, not exact
    torch.testing.assert_close(end.mean(0), mean, atol=tolerance, rtol=0)
    torch.testing.assert_close(end.var(0), variance, atol=tolerance, rtol=0)


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
        x = solve(GmSde(1), pair_posterior, noise.normal((1, 2)).double(), steps, noise=noise)[:, 0]
        errors.append((x.T @ x - PAIR).norm().item())
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([0.95, 0.98], abs=0.02)


@pytest.mark.slow
def test_gm_sde_2_gains_an_order_but_for_its_damping():
    count = 100_000

    def error(steps, order):
        noise = SharedNoise(count, generator(2))
        solver = GmSde(order, damping=UNDAMPED)
        x = solve(solver, pair_posterior, noise.normal((1, 2)).double(), steps, noise=noise)[:, 0]
        return (x.T @ x / count - PAIR).norm().item()

    assert error(8, 1) < 0.6 * error(4, 1)
    assert error(8, 2) < 0.36 * error(4, 2)
    assert error(8, 2) < 0.25 * error(8, 1)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
@pytest.mark.parametrize("name", VELOCITY)
def test_solvers_count_network_evaluations(name, steps):
    calls = []

    def model(x, t):
        calls.append(t)
        return exact_velocity(x, t)

    end = solve_by_name(name, model, start(), steps, noise=SampleNoise(0, range(8)))
    assert len(calls) == steps
    assert torch.isfinite(end).all()


@pytest.mark.parametrize("name", VELOCITY)
def test_one_step_is_one_euler_step(name):
    """From t = 1 onto t = 0 every solver gives the mean of the data seen at pure noise."""
    x = start()
    end = solve_by_name(name, exact_velocity, x, 1, noise=SampleNoise(0, range(8)))
    ones = torch.ones(len(x), dtype=torch.float64)
    torch.testing.assert_close(end, MODEL(x, ones).gaussian.mean)


def guided(weights, order=(0, 1, 2)):
    """Exact models of the data, guided towards other weights; the components in some order."""
    chosen = list(order)
    unconditional = exact_posterior(CENTERS[chosen], STD, WEIGHTS[chosen])
    return Probabilistic(0.3)(exact_posterior(CENTERS[chosen], STD, weights[chosen]), velocity_of(unconditional))


def test_whole_runs_depend_neither_on_the_batch_nor_on_the_order_of_components():
    weights = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    solver = GmOde(2, substeps=3, shift=2.0)
    together = solve(solver, guided(weights), start(5), 4, 2.0)
    alone = [solve(solver, guided(weights), start(5)[i : i + 1], 4, 2.0) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(together, solve(solver, guided(weights, (2, 0, 1)), start(5), 4, 2.0))


def exact_prediction(x, t):
    """The mixture over the velocity that a perfect network predicts."""
    posterior, time = MODEL(x, t).mixture, per_sample(t, x).unsqueeze(1)
    return GaussianMixture(
        (x.unsqueeze(1) - posterior.means) / time, posterior.log_weights, posterior.variance / time.square()
    )


MODELS = {"velocity": exact_velocity, "mixture": MODEL, "policy": exact_prediction}


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_do_not_depend_on_the_batch(name):
    model, seeds = MODELS[SOLVERS[name].on], range(6)
    together = solve_by_name(name, model, start(6), 5, noise=SampleNoise(3, seeds))
    alone = [solve_by_name(name, model, start(6)[i : i + 1], 5, noise=SampleNoise(3, [i])) for i in seeds]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_say_what_they_integrate_and_whether_they_add_noise(name):
    entry = SOLVERS[name]
    wrong = MODELS["mixture" if entry.on == "velocity" else "velocity"]
    with pytest.raises((TypeError, AttributeError)):
        solve_by_name(name, wrong, start(), 4, noise=SampleNoise(0, range(8)))
    first, second = (
        solve_by_name(name, MODELS[entry.on], start(), 4, noise=SampleNoise(seed, range(8))) for seed in (0, 1)
    )
    assert torch.equal(first, second) is not entry.noisy
    if entry.noisy:
        with pytest.raises(ValueError, match="adds noise"):
            solve_by_name(name, MODELS[entry.on], start(), 4)
    else:
        assert torch.equal(solve_by_name(name, MODELS[entry.on], start(), 4), first)


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_say_which_options_concern_them(name):
    """Another order, number of sub-steps or draw changes a solver whose row says so, and no other."""
    entry = SOLVERS[name]

    def run(**options):
        solver = entry.make(SolverOptions(4, **options))
        return solve(solver, MODELS[entry.on], start(), 4, noise=SampleNoise(0, range(8)))

    usual = run()
    assert torch.equal(run(order=1), usual) is (entry.order is not None)
    assert torch.equal(run(substeps=30), usual) is not entry.substeps
    assert torch.equal(run(draw=lambda mixture, noise: mixture.mean()), usual) is not entry.spectral


class Midpoint(Memoryless):
    """A solver of a user's own: the midpoint rule."""

    def intervals(self, evaluations):
        return evaluations // 2

    def step(self, model, x, t, s, state, noise):
        half = (s - t) / 2
        middle = x + half * model(x, expand(t, x))
        return x + 2 * half * model(middle, expand(t + half, x)), None


@pytest.mark.parametrize("where", [Midpoint, f"{__name__}:Midpoint"])
def test_a_solver_from_elsewhere_is_a_row_like_any_other(where):
    entry = SolverEntry(where, "velocity", False, "the midpoint rule", order=2)
    assert "midpoint" in names_on("velocity", {**SOLVERS, "midpoint": entry})
    orders = slope(lambda x, n: solve(entry.make(SolverOptions(n)), exact_velocity, x, n), (64, 128, 256))
    assert orders == pytest.approx([entry.order] * 2, abs=0.25)


def test_the_observer_sees_every_time_of_the_grid_and_the_point_there():
    seen = []
    grid = full_grid(4, 2.0)
    end = integrate(
        Euler(), lambda x, t: torch.ones_like(x), torch.zeros(2, 1), grid, observe=lambda *at: seen.append(at)
    )
    assert [t for t, _ in seen] == grid.tolist()
    for t, x in seen:
        torch.testing.assert_close(x, torch.full((2, 1), t - 1))
    assert torch.equal(seen[-1][1], end)
