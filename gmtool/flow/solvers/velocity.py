"""Solvers of dx/dt = u(x, t) from t = 1 (source) to t = 0 (data), for models that predict a velocity."""

from __future__ import annotations

import itertools

from torch import Tensor

from gmtool.flow.prediction import VelocityModel
from gmtool.flow.times import expand, time_grid


def euler(model: VelocityModel, x: Tensor, steps: int, shift: float, last: float = 0.0) -> Tensor:
    """Euler's method of order 1: ``steps`` intervals, one network evaluation each. x (B, C, *S) at t = 1.

    last: where the grid ends, before the shift, as in `gmtool.flow.times.time_grid`.
    """
    grid = time_grid(steps, shift, last)
    for start, stop in itertools.pairwise(grid):
        x = x + float(stop - start) * model(x, expand(start, x))
    return x


def heun(model: VelocityModel, x: Tensor, steps: int, shift: float) -> Tensor:
    """Heun's method of order 2 with ``steps`` network evaluations in all: ceil(steps / 2) intervals.

    An interval takes two evaluations; with an odd number the last one, onto t = 0, is an Euler step.
    """
    grid = time_grid((steps + 1) // 2, shift)
    for index, (start, stop) in enumerate(itertools.pairwise(grid)):
        first = model(x, expand(start, x))
        ahead = x + float(stop - start) * first
        if 2 * index + 1 == steps:
            return ahead
        x = x + float(stop - start) * 0.5 * (first + model(ahead, expand(stop, x)))
    return x
