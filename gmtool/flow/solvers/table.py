"""Every solver of a velocity by its name, with its order. The mixture's own solvers are in `mixture`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.prediction import VelocityModel
from gmtool.flow.solvers.ancestral import ddim, ddpm_large, ddpm_small
from gmtool.flow.solvers.dpm import dpmpp_2m, dpmpp_2m_sde
from gmtool.flow.solvers.unipc import unipc
from gmtool.flow.solvers.velocity import euler, heun
from gmtool.streams import Noise


@dataclass(frozen=True)
class OdeSolver:
    """solve(model, x at t = 1, network evaluations, time shift) -> x at t = 0, with an error of steps^-order."""

    solve: Callable[[VelocityModel, Tensor, int, float], Tensor]
    order: int


@dataclass(frozen=True)
class SdeSolver:
    """The same with fresh noise at every step; the order is that of the samples' mean and variance."""

    solve: Callable[[VelocityModel, Tensor, int, float, Noise], Tensor]
    order: int


VELOCITY_SOLVERS: Mapping[str, OdeSolver | SdeSolver] = {
    "euler": OdeSolver(euler, order=1),
    "heun": OdeSolver(heun, order=2),
    "ddim": OdeSolver(ddim, order=1),
    "ddpm-small": SdeSolver(ddpm_small, order=1),
    "ddpm-large": SdeSolver(ddpm_large, order=1),
    "dpmpp-2m": OdeSolver(dpmpp_2m, order=2),
    "dpmpp-2m-sde": SdeSolver(dpmpp_2m_sde, order=2),
    "unipc": OdeSolver(unipc, order=2),
}


def integrate(name: str, model: VelocityModel, x: Tensor, steps: int, shift: float, noise: Noise) -> Tensor:
    """x (B, C, *S) at t = 1 to t = 0 by the solver ``name``; an ODE solver leaves ``noise`` alone."""
    solver = VELOCITY_SOLVERS[name]
    if isinstance(solver, SdeSolver):
        return solver.solve(model, x, steps, shift, noise)
    return solver.solve(model, x, steps, shift)
