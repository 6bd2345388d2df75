"""GM-ODE: the probability-flow ODE under the predicted mixtures, of order 1 or 2 in network evaluations.

One network evaluation per step. The mixture seen at (x_t, t) gives the denoising mean at every later point in closed
form, so a step is integrated in sub-steps x_r' = x_r + (x_r - E[x | x_r]) / r (r' - r) with no further evaluation. A
step ends where the next one re-evaluates this one's mixture, whose mean there is therefore found on the way.
Source: GMFlow, arXiv 2504.05304, section 3.3, algorithm 2.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.model import MixtureModel
from gmtool.flow.posterior import reduced_posteriors
from gmtool.flow.solvers.base import Solver, SolverOptions
from gmtool.flow.solvers.ddim import deterministic_step
from gmtool.flow.solvers.second_order import Damping, second_order
from gmtool.flow.times import expand, sub_grid
from gmtool.streams import Noise


@dataclass(frozen=True)
class MeanAhead:
    """What the second order remembers of a step: its mixture's mean at the step's end (B, C, *S), and its length."""

    mean: Tensor
    length: float


@dataclass(frozen=True)
class GmOde(Solver[MixtureModel, MeanAhead | None]):
    """See the module. shift: of the grid of times, before which the sub-steps are even."""

    order: int = 2
    substeps: int = 1
    shift: float = 1.0
    damping: Damping = Damping()

    @classmethod
    def configured(cls, options: SolverOptions) -> GmOde:
        """See `Solver.configured`."""
        return cls(options.order, options.substeps, options.shift)

    def init(self, _x: Tensor) -> MeanAhead | None:
        """See `Solver.init`."""
        return None

    def step(
        self, model: MixtureModel, x: Tensor, t: float, s: float, last: MeanAhead | None, _noise: Noise | None
    ) -> tuple[Tensor, MeanAhead | None]:
        """See `Solver.step`."""
        prediction, ends = model(x, expand(t, x)), self.order == 1 or s == 0
        factor = prediction.factor
        if last is not None:
            factor = second_order(prediction, last.mean, t - s, last.length, self.damping)
        if ends and factor is None and self.substeps == 1:  # straight to the mean: no later one is needed
            return deterministic_step(x, t, s, prediction.gaussian.mean), None
        factors = (factor, factor if ends else prediction.factor)
        posterior, remembered = reduced_posteriors(prediction.base, x, t, factors, prediction.gaussian.mean)
        point = posterior.start
        for r, after in itertools.pairwise(sub_grid(t, s, self.substeps, self.shift)):
            point = after / r * point + (1 - after / r) * posterior.mean_at(point, r)
        x, mean = posterior.lift(s, point, None if ends else remembered.mean_at(point, s))
        return x, None if mean is None else MeanAhead(mean, t - s)
