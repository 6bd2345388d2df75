"""UniPC of order 2: DPM-Solver++(2M) as the predictor, and a corrector that costs no network evaluation.

The mean of the data found at the predicted point serves twice: it corrects the step that led there, and it starts the
next one. The corrector UniC-2 integrates, exactly, e^lambda times the parabola in lambda through x^ at both ends of the
step and at the start of the step before. While that point lies at infinite lambda (the first two steps), UniC-1 with
B(h) = e^h - 1 takes the mean of x^ at the two ends: from t = 1 that is the trapezoidal rule in e^lambda. The step onto
t = 0 is the predictor's, x^, whose error is of order 2 in its length; so is then the whole.

Source: Zhao et al., arXiv 2302.04867, sections 3.1 and 3.2 (multistep, data prediction, p = 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.model import VelocityModel
from gmtool.flow.solvers.base import Solver
from gmtool.flow.solvers.ddim import denoise, deterministic_step
from gmtool.flow.solvers.dpmpp import DataStep, extrapolated, step_length
from gmtool.streams import Noise


@dataclass(frozen=True)
class PredictedStep:
    """The step that predicted the present point: where it started, x (B, C, *S) at time t, and what it knew.

    start: x^ there, and the step's length. before: the same of the step before; None for the first step.
    """

    x: Tensor
    t: float
    start: DataStep
    before: DataStep | None


def corrected(end: Tensor, start: DataStep, before: DataStep | None) -> Tensor:
    """The mean of x^ over a step, weighted by e^lambda: by the parabola through x^ at ``end``, ``start``, ``before``.

    With tau = (lambda - lambda_t) / h, r = h' / h and the slopes d = x^_s - x^_t, d' = (x^_t - x^') / r it is
    x^_t + <tau> d + <tau (tau - 1)> (d - d') / (1 + r), where <tau> = E - 1/h, <tau^2> = E - 2 <tau> / h and
    E = 1 / (1 - e^-h). Where h or h' is infinite: (x^_t + x^_s) / 2.
    """
    rise = end - start.data
    h = start.length
    if before is None or math.isinf(before.length):
        return start.data + 0.5 * rise
    ratio = before.length / h
    settled = -1 / math.expm1(-h)
    first = settled - 1 / h
    second = settled - 2 * first / h
    bend = (rise - (start.data - before.data) / ratio) / (1 + ratio)
    return start.data + first * rise + (second - first) * bend


@dataclass(frozen=True)
class UniPC(Solver[VelocityModel, PredictedStep | None]):
    """See the module."""

    def init(self, _x: Tensor) -> PredictedStep | None:
        """See `Solver.init`."""
        return None

    def step(
        self, model: VelocityModel, x: Tensor, t: float, s: float, last: PredictedStep | None, _noise: Noise | None
    ) -> tuple[Tensor, PredictedStep]:
        """See `Solver.step`."""
        data, before = denoise(model, x, t), None
        if last is not None:
            before = last.start
            x = deterministic_step(last.x, last.t, t, corrected(data, before, last.before))
        start = DataStep(data, step_length(t, s))
        ahead = deterministic_step(x, t, s, extrapolated(data, start.length, before))
        return ahead, PredictedStep(x, t, start, before)
