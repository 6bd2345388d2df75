"""DPM-Solver++(2M) and its SDE form: two-step solvers that know how the mean of the data changes with lambda.

With lambda = log(alpha / sigma) = log(1/t - 1), h a step's length in it and h' that of the step before, x^ is
extrapolated half a step on, x^ + h / (2 h') (x^ - x^'), and takes the place of x^ in DDIM's step (2M) or in the
ancestral one (2M SDE): order 2, one network evaluation a step.

Both ends of time are at infinite lambda. From t = 1 there is no step before and the first-order step is exact for a
constant x^. The second step has h' = inf, hence no correction, which is the formula's limit. Onto t = 0, h = inf: there
the weight e^lambda gathers at the very end, to which a line in lambda cannot be extrapolated, and the step is x^. These
three first-order steps have errors of order 2 in their own length, so the order of the whole stays 2. (In t it is 2 up
to a logarithm: n equal steps in t end with error n^-2 log n, because the k-th step from either end has a length log(1 +
1/k) in lambda, however large n is.)

Source: Lu et al., arXiv 2211.01095, algorithm 2 and appendix A.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gmtool.flow.path import reverse_transition
from gmtool.flow.prediction import VelocityModel
from gmtool.flow.solvers.ancestral import denoise, deterministic_step
from gmtool.flow.times import expand, time_grid
from gmtool.streams import Noise


@dataclass(frozen=True)
class Memory:
    """The step before: the mean of the data at its start, (B, C, *S), and its length in lambda (inf from t = 1)."""

    data: Tensor
    length: float


def step_length(t: Tensor, s: Tensor) -> float:
    """h = lambda_s - lambda_t > 0 for grid times s < t; inf when t = 1 or s = 0."""
    return float(torch.logit(t) - torch.logit(s))


def extrapolated(data: Tensor, length: float, memory: Memory | None) -> Tensor:
    """x^ + h / (2 h') (x^ - x^'), and x^ at the ends of time; see the module."""
    if memory is None or math.isinf(length):
        return data
    return data + 0.5 * length / memory.length * (data - memory.data)


def dpmpp_2m(model: VelocityModel, x: Tensor, steps: int, shift: float) -> Tensor:
    """DPM-Solver++(2M), order 2. x (B, C, *S) at t = 1; returns x at t = 0."""
    memory: Memory | None = None
    for start, stop in itertools.pairwise(time_grid(steps, shift)):
        data, length = denoise(model, x, start), step_length(start, stop)
        x = deterministic_step(x, start, stop, extrapolated(data, length, memory))
        memory = Memory(data, length)
    return x


def dpmpp_2m_sde(model: VelocityModel, x: Tensor, steps: int, shift: float, noise: Noise) -> Tensor:
    """SDE-DPM-Solver++(2M): DDPM's ancestral step of small variance on the extrapolated mean of the data.

    Indeed e^-h = alpha_t sigma_s / (alpha_s sigma_t), so 1 - e^-2h is the gain b of the reverse transition.
    x (B, C, *S) at t = 1; returns x at t = 0.
    """
    memory: Memory | None = None
    for start, stop in itertools.pairwise(time_grid(steps, shift)):
        data, length = denoise(model, x, start), step_length(start, stop)
        step = reverse_transition(x, expand(start, x), expand(stop, x))
        x = step.draw(x, extrapolated(data, length, memory), noise.normal(x.shape[1:]).to(x))
        memory = Memory(data, length)
    return x
