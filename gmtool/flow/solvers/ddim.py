"""DDIM without noise (eta = 0): keep the data's mean x^ = E[x | x_t] and the noise it implies, and move between them.

x_s = alpha_s x^ + sigma_s z^ with z^ = (x_t - alpha_t x^) / sigma_t. On the linear path z^ - x^ = u, which makes this
x_t + (s - t) u: DDIM is Euler's method here, up to rounding. Order 1, one network evaluation per step; from exactly
t = 1 and onto exactly t = 0, where the step gives x^ itself. Source: Song et al., arXiv 2010.02502, eq. 12.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.model import VelocityModel
from gmtool.flow.path import mean_data
from gmtool.flow.solvers.base import Memoryless
from gmtool.flow.times import expand
from gmtool.streams import Noise


def denoise(model: VelocityModel, x_t: Tensor, t: float) -> Tensor:
    """x^ = x_t - t u (B, C, *S), by one network evaluation."""
    time = expand(t, x_t)
    return mean_data(x_t, time, model(x_t, time))


def deterministic_step(x_t: Tensor, t: float, s: float, data: Tensor) -> Tensor:
    """x_s = (s / t) x_t + (1 - s / t) x^, s < t: the flow's exact step while x^ (B, C, *S) stays constant.

    With e^lambda = alpha / sigma the flow reads x_s / sigma_s - x_t / sigma_t = integral of x^ d(e^lambda), whatever
    the schedule. Here e^lambda = 1/t - 1, so the step's integral is x^ (1/s - 1/t): finite from t = 1, where
    lambda = -inf, and after multiplication by sigma_s = s also onto s = 0, where lambda = +inf and x_0 = x^.
    """
    return s / t * x_t + (1 - s / t) * data


@dataclass(frozen=True)
class Ddim(Memoryless[VelocityModel]):
    """See the module."""

    def step(
        self, model: VelocityModel, x: Tensor, t: float, s: float, _state: None, _noise: Noise | None
    ) -> tuple[Tensor, None]:
        """See `Solver.step`."""
        return deterministic_step(x, t, s, denoise(model, x, t)), None
