"""How a flow moves its points, and how far from the data it leaves them.

With dx/dt = u(x, t) integrated from x_1 at t = 1 (source) to x_0 at t = 0 (data), |.| the Euclidean norm over all
entries of a point, and expectations over points:

length         E int |u| dt: |x_1 - x_0| for a straight path, more for a curved one
straightness   E int |(x_1 - x_0) - u|^2 dt: 0 if one Euler step is exact
lipschitz      E |du/dx|, the largest singular value of the Jacobian, over points and times
transport      W2^2 of two sets of N points: the minimum over permutations p of mean |x_i - y_p(i)|^2, computed exactly
sliced         E_v W2^2(v.x, v.y) over random unit directions v: cheap for sets of any size

All are in the units of the points; to compare flows, use normalised latents.
Source: MM-FM (Luo et al., CVPR 2026), sections 3 and 4.1; sliced: Bonneel et al. 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gmtool.flow.coupling import batch_optimal_transport
from gmtool.flow.model import VelocityModel
from gmtool.flow.path import per_sample
from gmtool.flow.solvers.base import integrate
from gmtool.flow.solvers.euler import Euler

POWER_ITERATIONS = 20
"""Power iterations for the largest singular value; more would raise it by about a percent."""
DIRECTIONS = 256
"""Random directions of the sliced distance."""


@dataclass(frozen=True)
class Trajectory:
    """The path of Euler's method: points (n + 1, B, C, *S) at times (n + 1,) from 1 to 0; velocities (n, B, C, *S)."""

    points: Tensor
    velocities: Tensor
    times: Tensor

    def length(self) -> Tensor:
        """int |u| dt of each path, (B,)."""
        return self._integral(self.velocities.flatten(2).norm(dim=2))

    def straightness(self) -> Tensor:
        """int |(x_1 - x_0) - u|^2 dt, (B,)."""
        bend = (self.points[0] - self.points[-1]) - self.velocities
        return self._integral(bend.flatten(2).square().sum(2))

    def _integral(self, values: Tensor) -> Tensor:
        """The integral over time of values (n, B) that are constant over each step."""
        return (values * (self.times[:-1] - self.times[1:]).unsqueeze(1)).sum(0)


@dataclass(frozen=True, eq=False)
class FollowedPath:
    """The paths of some points, and the velocity field that moved them."""

    field: VelocityModel
    path: Trajectory


@torch.no_grad()
def trace(model: VelocityModel, x: Tensor, grid: Tensor) -> Trajectory:
    """Integrate the flow by Euler's method and record every point and velocity.

    x (B, C, *S): points at t = 1. grid (n + 1,): decreasing times from 1 to 0.
    """
    points: list[Tensor] = []
    velocities: list[Tensor] = []

    def recorded(x_t: Tensor, t: Tensor) -> Tensor:
        velocities.append(model(x_t, t))
        return velocities[-1]

    integrate(Euler(), recorded, x, grid, observe=lambda _, point: points.append(point))
    return Trajectory(torch.stack(points), torch.stack(velocities), grid.to(x))


def lipschitz(model: VelocityModel, x_t: Tensor, t: Tensor, start: Tensor) -> Tensor:
    """The largest singular value of J = du/dx at each point, (B,), by power iteration on J^T J.

    The iteration approaches it from below.
    x_t (B, C, *S), t (B,): the points and their times.
    start (B, C, *S): random numbers, the first direction of the iteration.
    """
    direction = _unit(start)

    def field(x: Tensor) -> Tensor:
        return model(x, t)

    # the fused kernels of attention have no derivative in forward mode
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        for _ in range(POWER_ITERATIONS):
            pull = torch.func.vjp(field, x_t)[1]
            direction = _unit(pull(_push(field, x_t, direction))[0])
        pushed = _push(field, x_t, direction)
    return pushed.flatten(1).norm(dim=1)


def _push(field: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    """J v, the derivative of the field at x along a direction."""
    return cast(Tensor, torch.func.jvp(field, (x,), (direction,))[1])


def _unit(x: Tensor) -> Tensor:
    """x / |x| for each sample; a zero vector stays zero."""
    return x / per_sample(x.flatten(1).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny), x)


def mean_lipschitz(model: VelocityModel, trajectory: Trajectory, stream: torch.Generator) -> Tensor:
    """The largest singular value of du/dx at one random point of each path, (B,).

    The point is the start of the Euler step that covers a time uniform in (0, 1]; see `lipschitz`.
    trajectory: points (n + 1, B, C, *S). stream: of the times and of the first directions of the power iteration.
    """
    count = trajectory.points.shape[1]
    places = torch.rand(count, generator=stream, device=stream.device).to(trajectory.times)
    # step i of the grid covers the times from times[i + 1] to times[i]
    steps = (trajectory.times[1:, None] >= 1 - places).sum(0)
    point = trajectory.points[steps, torch.arange(count, device=steps.device)]
    start = torch.randn(point.shape, generator=stream, device=stream.device).to(point)
    return lipschitz(model, point, trajectory.times[steps], start)


def transport_distance(x: Tensor, y: Tensor) -> float:
    """W2^2 between x and y, both (N, ...), by an exact assignment: for N up to a few thousand.

    Raises ValueError for sets of different sizes or shapes.
    """
    _expect_pairs(x, y)
    matched = y[batch_optimal_transport(x, y)]
    return float((x - matched).double().flatten(1).square().sum(1).mean())


def sliced_distance(x: Tensor, y: Tensor, stream: torch.Generator, directions: int = DIRECTIONS) -> float:
    """mean_v W2^2(v.x, v.y) over random unit directions v, in float64, for x and y both (N, ...); see the module.

    Raises ValueError for sets of different sizes or shapes.
    """
    _expect_pairs(x, y)
    first, second = x.flatten(1).double(), y.flatten(1).double()
    drawn = torch.randn(first.shape[1], directions, generator=stream, device=stream.device).to(first)
    units = drawn / drawn.norm(dim=0)
    gaps = (units.T @ first.T).sort().values - (units.T @ second.T).sort().values  # in rows: sorting columns is slower
    return float(gaps.square().mean())


def _expect_pairs(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y) or math.prod(x.shape[1:]) != math.prod(y.shape[1:]):
        raise ValueError(f"distances are between equally many points of one shape: {tuple(x.shape)}, {tuple(y.shape)}")
