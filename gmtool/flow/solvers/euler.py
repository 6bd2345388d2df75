"""Euler's method: x_s = x_t + (s - t) u(x_t, t). Order 1, one network evaluation per step.

Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I (1993), section I.7.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.model import VelocityModel
from gmtool.flow.solvers.base import Memoryless
from gmtool.flow.times import expand
from gmtool.streams import Noise


@dataclass(frozen=True)
class Euler(Memoryless[VelocityModel]):
    """See the module."""

    def step(
        self, model: VelocityModel, x: Tensor, t: float, s: float, _state: None, _noise: Noise | None
    ) -> tuple[Tensor, None]:
        """See `Solver.step`."""
        return x + (s - t) * model(x, expand(t, x)), None
