"""DPM-Solver++(2M) and its SDE form: two-step solvers that know how the mean of the data changes with lambda.

With lambda = log(alpha / sigma) = log(1/t - 1), h a step's length in it and h' that of the step before, x^ is
extrapolated half a step on, x^ + h / (2 h') (x^ - x^'), and takes the place of x^ in DDIM's step (2M) or in the
ancestral one (2M SDE): order 2, one network evaluation per step.

Both ends of time are at infinite lambda. From t = 1 there is no step before and the first-order step is exact for a
constant x^. The second step has h' = inf, hence no correction, which is the formula's limit. Onto t = 0, h = inf: there
the weight e^lambda gathers at the very end, to which a line in lambda cannot be extrapolated, and the step is x^. These
three first-order steps have errors of order 2 in their own length, so the order of the whole stays 2. (In t it is 2 up
to a logarithm: n equal steps in t end with error n^-2 log n, because the k-th step from either end has a length log(1 +
1/k) in lambda, however large n is.)

Source: Lu et al., arXiv 2211.01095, algorithm 2 and appendix A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.model import VelocityModel
from gmtool.flow.path import reverse_transition
from gmtool.flow.solvers.base import Solver, given
from gmtool.flow.solvers.ddim import denoise, deterministic_step
from gmtool.flow.times import expand
from gmtool.streams import Noise


@dataclass(frozen=True)
class DataStep:
    """A step that was made: the data's mean at its start, (B, C, *S), and its length in lambda (inf from t = 1)."""

    data: Tensor
    length: float


def step_length(t: float, s: float) -> float:
    """h = lambda_s - lambda_t > 0 for s < t; inf when t = 1 or s = 0."""
    return math.inf if t >= 1 or s <= 0 else math.log(t / (1 - t)) - math.log(s / (1 - s))


def extrapolated(data: Tensor, length: float, before: DataStep | None) -> Tensor:
    """x^ + h / (2 h') (x^ - x^'), and x^ at the ends of time; see the module."""
    if before is None or math.isinf(length):
        return data
    return data + 0.5 * length / before.length * (data - before.data)


class _TwoStep(Solver[VelocityModel, DataStep | None]):
    """What both forms remember: the step before."""

    def init(self, _x: Tensor) -> DataStep | None:
        """See `Solver.init`."""
        return None


@dataclass(frozen=True)
class Dpmpp2M(_TwoStep):
    """DPM-Solver++(2M)."""

    def step(
        self, model: VelocityModel, x: Tensor, t: float, s: float, before: DataStep | None, _noise: Noise | None
    ) -> tuple[Tensor, DataStep]:
        """See `Solver.step`."""
        data, length = denoise(model, x, t), step_length(t, s)
        return deterministic_step(x, t, s, extrapolated(data, length, before)), DataStep(data, length)


@dataclass(frozen=True)
class Dpmpp2MSde(_TwoStep):
    """SDE-DPM-Solver++(2M): DDPM's ancestral step of small variance on the extrapolated mean of the data.

    Indeed e^-h = alpha_t sigma_s / (alpha_s sigma_t), so 1 - e^-2h is the gain b of the reverse transition.
    """

    def step(
        self, model: VelocityModel, x: Tensor, t: float, s: float, before: DataStep | None, noise: Noise | None
    ) -> tuple[Tensor, DataStep]:
        """See `Solver.step`."""
        data, length = denoise(model, x, t), step_length(t, s)
        transition = reverse_transition(x, expand(t, x), expand(s, x))
        x = transition.draw(x, extrapolated(data, length, before), given(noise).normal(x.shape[1:]).to(x))
        return x, DataStep(data, length)
