import math

import pytest
import torch

from gmtool.flow.path import per_sample
from gmtool.flow.solvers.ancestral import denoise, deterministic_step
from gmtool.flow.solvers.dpm import Memory, dpmpp_2m, extrapolated, step_length
from gmtool.flow.solvers.unipc import corrected, unipc
from gmtool.flow.times import time_grid

GRID = time_grid(5, 1.0)


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
    assert step_length(GRID[1], GRID[2]) == pytest.approx(log_ratio(0.6) - log_ratio(0.8))
    assert math.isinf(step_length(GRID[0], GRID[1])) and math.isinf(step_length(GRID[4], GRID[5]))


def test_the_flow_with_constant_data_is_integrated_exactly():
    """x_t = (1 - t) x + t z: whatever the steps, from t = 1 and onto t = 0."""
    x = start()
    for time in (0.75, 0.2, 0.0):
        grid = torch.tensor([1.0, time], dtype=torch.float64)
        found = deterministic_step(x, grid[0], grid[1], torch.full_like(x, 0.3))
        torch.testing.assert_close(found, (1 - time) * torch.full_like(x, 0.3) + time * x)
    for solve in (dpmpp_2m, unipc):
        torch.testing.assert_close(solve(constant_data(0.3), x, 6, 2.0), torch.full_like(x, 0.3))


def test_dpmpp_takes_the_published_steps():
    """Lu et al., algorithm 2, written out for 4 steps in alpha, sigma, h and r."""
    x = start()
    grid = time_grid(4, 1.0)
    times = grid.tolist()
    first = denoise(field, x, grid[0])
    state = times[1] * x + (1 - times[1]) * first
    before, slopes = first, {2: 0.0}
    for i in (2, 3):
        now, then = times[i - 1], times[i]
        data = denoise(field, state, grid[i - 1])
        h = log_ratio(then) - log_ratio(now)
        if i == 3:
            slopes[3] = h / (2 * (log_ratio(now) - log_ratio(times[i - 2])))
        mixed = (1 + slopes[i]) * data - slopes[i] * before
        state = then / now * state - (1 - then) * math.expm1(-h) * mixed
        before = data
    expected = denoise(field, state, grid[3])
    torch.testing.assert_close(dpmpp_2m(field, x, 4, 1.0), expected)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_the_corrector_integrates_parabolas_in_lambda_exactly(power):
    t, s, h, h_before = 0.7, 0.55, log_ratio(0.55) - log_ratio(0.7), log_ratio(0.7) - log_ratio(0.9)
    x = torch.zeros(1, 1, dtype=torch.float64)
    data = lambda offset: torch.full_like(x, offset**power)  # noqa: E731
    mean = corrected(data(h), Memory(data(0.0), h), Memory(data(-h_before), h_before))
    found = deterministic_step(x, torch.tensor(t), torch.tensor(s), mean).item()
    fine = torch.linspace(0, h, 20_001, dtype=torch.float64)
    integral = torch.trapezoid((fine + log_ratio(t)).exp() * fine**power, fine).item()
    assert found == pytest.approx(s * integral, rel=1e-6)


def test_the_corrector_uses_the_two_ends_while_lambda_is_infinite():
    old, new = torch.zeros(1, 1), torch.ones(1, 1)
    assert corrected(new, Memory(old, math.inf), None).item() == 0.5
    assert corrected(new, Memory(old, 1.0), Memory(old, math.inf)).item() == 0.5


def test_the_predictor_extrapolates_half_a_step():
    before, now = torch.zeros(1, 1), torch.ones(1, 1)
    assert extrapolated(now, 1.0, Memory(before, 2.0)).item() == 1.25
    assert extrapolated(now, 1.0, Memory(before, math.inf)).item() == 1
    assert extrapolated(now, math.inf, Memory(before, 2.0)).item() == 1
    assert extrapolated(now, 1.0, None).item() == 1


def test_solvers_agree_on_the_first_two_steps_but_for_the_corrector():
    """Two steps: the predictors have nothing to extrapolate yet; UniPC corrects the first one by the trapezoid."""
    x = start()
    grid = time_grid(2, 1.0)
    first = denoise(field, x, grid[0])
    middle = deterministic_step(x, grid[0], grid[1], first)
    second = denoise(field, middle, grid[1])
    torch.testing.assert_close(dpmpp_2m(field, x, 2, 1.0), second)
    torch.testing.assert_close(unipc(field, x, 2, 1.0), second)
