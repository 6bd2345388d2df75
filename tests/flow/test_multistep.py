import math

import pytest
import torch
from toys import solve

from gmtool.flow.path import per_sample
from gmtool.flow.solvers.ddim import denoise, deterministic_step
from gmtool.flow.solvers.dpmpp import DataStep, Dpmpp2M, extrapolated, step_length
from gmtool.flow.solvers.unipc import UniPC, corrected
from gmtool.flow.times import full_grid


def log_ratio(t):
    return math.log((1 - t) / t)


def start():
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def field(x, t):
    return torch.sin(2 * x) - per_sample(t, x)


def constant_data(value):
    """The velocity of a model whose mean of the data never changes."""
    return lambda x, t: (x - value) / per_sample(t, x)


def test_step_length_is_the_difference_of_lambda_and_infinite_at_both_ends():
    assert step_length(0.8, 0.6) == pytest.approx(log_ratio(0.6) - log_ratio(0.8))
    assert math.isinf(step_length(1.0, 0.8)) and math.isinf(step_length(0.2, 0.0))


def test_the_flow_with_constant_data_is_integrated_exactly():
    """x_t = (1 - t) x + t z: whatever the steps, from t = 1 and onto t = 0."""
    x = start()
    for time in (0.75, 0.2, 0.0):
        stepped = deterministic_step(x, 1.0, time, torch.full_like(x, 0.3))
        torch.testing.assert_close(stepped, (1 - time) * torch.full_like(x, 0.3) + time * x)
    for solver in (Dpmpp2M(), UniPC()):
        torch.testing.assert_close(solve(solver, constant_data(0.3), x, 6, 2.0), torch.full_like(x, 0.3))


def test_dpmpp_takes_the_published_steps():
    """Lu et al., algorithm 2, written out for 4 steps in alpha, sigma, h and r."""
    x = start()
    times = full_grid(4).tolist()
    first = denoise(field, x, times[0])
    state = times[1] * x + (1 - times[1]) * first
    before, slopes = first, {2: 0.0}
    for i in (2, 3):
        now, then = times[i - 1], times[i]
        data = denoise(field, state, now)
        h = log_ratio(then) - log_ratio(now)
        if i == 3:
            slopes[3] = h / (2 * (log_ratio(now) - log_ratio(times[i - 2])))
        mixed = (1 + slopes[i]) * data - slopes[i] * before
        state = then / now * state - (1 - then) * math.expm1(-h) * mixed
        before = data
    expected = denoise(field, state, times[3])
    torch.testing.assert_close(solve(Dpmpp2M(), field, x, 4), expected)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_the_corrector_integrates_parabolas_in_lambda_exactly(power):
    t, s, h, h_before = 0.7, 0.55, log_ratio(0.55) - log_ratio(0.7), log_ratio(0.7) - log_ratio(0.9)
    x = torch.zeros(1, 1, dtype=torch.float64)
    data = lambda offset: torch.full_like(x, offset**power)  # noqa: E731
    mean = corrected(data(h), DataStep(data(0.0), h), DataStep(data(-h_before), h_before))
    stepped = deterministic_step(x, t, s, mean).item()
    fine = torch.linspace(0, h, 20_001, dtype=torch.float64)
    integral = torch.trapezoid((fine + log_ratio(t)).exp() * fine**power, fine).item()
    assert stepped == pytest.approx(s * integral, rel=1e-6)


def test_the_corrector_uses_the_two_ends_while_lambda_is_infinite():
    old, new = torch.zeros(1, 1), torch.ones(1, 1)
    assert corrected(new, DataStep(old, math.inf), None).item() == 0.5
    assert corrected(new, DataStep(old, 1.0), DataStep(old, math.inf)).item() == 0.5


def test_the_predictor_extrapolates_half_a_step():
    before, now = torch.zeros(1, 1), torch.ones(1, 1)
    assert extrapolated(now, 1.0, DataStep(before, 2.0)).item() == 1.25
    assert extrapolated(now, 1.0, DataStep(before, math.inf)).item() == 1
    assert extrapolated(now, math.inf, DataStep(before, 2.0)).item() == 1
    assert extrapolated(now, 1.0, None).item() == 1


def test_solvers_agree_on_the_first_two_steps_but_for_the_corrector():
    """Two steps: the predictors have nothing to extrapolate yet; UniPC corrects the first one by the trapezoid."""
    x = start()
    first = denoise(field, x, 1.0)
    second = denoise(field, deterministic_step(x, 1.0, 0.5, first), 0.5)
    torch.testing.assert_close(solve(Dpmpp2M(), field, x, 2), second)
    torch.testing.assert_close(solve(UniPC(), field, x, 2), second)
