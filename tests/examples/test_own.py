"""The examples of a network and of a solver of one's own."""

import re
import sys

import pytest
import torch
from user import load_example

from gmtool.flow.path import per_sample
from gmtool.flow.solvers import SOLVERS
from gmtool.flow.solvers.base import integrate
from gmtool.flow.times import full_grid


@pytest.fixture
def solver():
    yield load_example("own_solver")
    SOLVERS.pop("midpoint")


@pytest.mark.slow
def test_a_network_of_ones_own_learns_more_than_the_mixture_that_it_starts_from(capsys):
    start, end = load_example("own_network").main(steps=150)
    assert end < 0.5 * start
    assert f"{end:.5f} of the samples" in capsys.readouterr().out


def test_the_midpoint_rule_is_of_its_order(solver):
    """dx/dt = x t: x_0 = x_1 exp(-1/2). Twice the evaluations leave a quarter of the error."""
    start = torch.ones(1, 1, dtype=torch.float64)
    midpoint = solver.Midpoint()

    def error(evaluations):
        grid = full_grid(midpoint.intervals(evaluations))
        end = integrate(midpoint, lambda x, t: x * per_sample(t, x), start, grid)
        return abs(float(end) - 2.718281828459045**-0.5)

    assert error(40) / error(80) == pytest.approx(4, rel=0.05)


@pytest.mark.slow
def test_a_solver_of_ones_own_draws_through_the_sample_stage(solver, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["own_solver.py", str(tmp_path), "--steps", "40"])
    solver.main()
    said = capsys.readouterr().out
    assert "midpoint, 16 steps, order 2, unguided" in said
    errors = {name: float(value) for name, value in re.findall(r"(\w+), 16 evaluations: .* (\S+)", said)}
    assert errors["euler"] > errors["midpoint"] > 0
