"""DDPM: ancestral sampling, x_s ~ q(x_s | x_t, x = x^) with the data's mean x^ = E[x | x_t] in the place of the data.

Its variance lies between two bounds: that of q(x_s | x_t, x), exact for data of one value, and that of q(x_s | x_t) for
data N(0, I), exact for them. Order 1 in the samples' mean and variance, one network evaluation per step. The closing
step onto t = 0 is x^. Source: Ho et al., arXiv 2006.11239, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gmtool.flow.model import VelocityModel
from gmtool.flow.path import ReverseTransition, per_sample, reverse_transition
from gmtool.flow.solvers.base import Memoryless, given
from gmtool.flow.solvers.ddim import denoise
from gmtool.flow.times import expand
from gmtool.streams import Noise


@dataclass(frozen=True)
class DdpmSmall(Memoryless[VelocityModel]):
    """With the least variance."""

    def step(
        self, model: VelocityModel, x: Tensor, t: float, s: float, _state: None, noise: Noise | None
    ) -> tuple[Tensor, None]:
        """See `Solver.step`."""
        transition = reverse_transition(x, expand(t, x), expand(s, x))
        return transition.draw(x, denoise(model, x, t), given(noise).normal(x.shape[1:]).to(x)), None


@dataclass(frozen=True)
class DdpmLarge(Memoryless[VelocityModel]):
    """With the largest variance."""

    def step(
        self, model: VelocityModel, x: Tensor, t: float, s: float, _state: None, noise: Noise | None
    ) -> tuple[Tensor, None]:
        """See `Solver.step`."""
        transition = _with_large_variance(x, expand(t, x), expand(s, x))
        return transition.draw(x, denoise(model, x, t), given(noise).normal(x.shape[1:]).to(x)), None


def _with_large_variance(x_t: Tensor, t: Tensor, s: Tensor) -> ReverseTransition:
    """The reverse transition with variance b sigma_t^2 (alpha_s^2 + sigma_s^2) / (alpha_t^2 + sigma_t^2); 0 onto s = 0.

    b sigma_t^2 / (alpha_t^2 + sigma_t^2) is DDPM's beta, whose states have alpha^2 + sigma^2 = 1.
    """
    step = reverse_transition(x_t, t, s)
    late, early = per_sample(t, x_t), per_sample(s, x_t)
    gain = step.from_x / (1 - early)
    variance = gain * late.square() * _power(early) / _power(late)
    return ReverseTransition(step.from_x_t, step.from_x, torch.where(early > 0, variance, 0))


def _power(t: Tensor) -> Tensor:
    """alpha_t^2 + sigma_t^2."""
    return (1 - t).square() + t.square()
