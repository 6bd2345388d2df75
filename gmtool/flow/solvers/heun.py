"""Heun's method: the trapezoidal rule with Euler's step as predictor. Order 2, two network evaluations per step.

Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I (1993), section II.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.model import VelocityModel
from gmtool.flow.solvers.base import Solver, SolverOptions
from gmtool.flow.times import expand
from gmtool.streams import Noise


@dataclass(frozen=True)
class Heun(Solver[VelocityModel, int]):
    """evaluations: the total; if it is odd, the last step is Euler's. None: every step takes two.

    The state is the number of evaluations so far.
    """

    evaluations: int | None = None

    @classmethod
    def configured(cls, options: SolverOptions) -> Heun:
        """See `Solver.configured`."""
        return cls(options.evaluations)

    def intervals(self, evaluations: int) -> int:
        """ceil(evaluations / 2)."""
        return (evaluations + 1) // 2

    def init(self, _x: Tensor) -> int:
        """See `Solver.init`."""
        return 0

    def step(
        self, model: VelocityModel, x: Tensor, t: float, s: float, made: int, _noise: Noise | None
    ) -> tuple[Tensor, int]:
        """See `Solver.step`."""
        first = model(x, expand(t, x))
        ahead = x + (s - t) * first
        if made + 1 == self.evaluations:
            return ahead, made + 1
        return x + (s - t) * 0.5 * (first + model(ahead, expand(s, x))), made + 2
