"""Moving averages of the weights, several at once: exponential ones, and those of a power law.

An average is a_n = b_n a_(n-1) + (1 - b_n) w_n over the weights w_n after the steps n = 0, 1, ... Exponential: b_n is
the decay, at first (1 + n) / (10 + n), so that an early average forgets the start. By images: b_n = 0.5^(B / h) for
batches of B and a half-life of h images, at first a twentieth of the B n images seen. Source: EDM, arXiv 2206.00364,
appendix F.3; GMFlow's public code. Power law: b_n = (1 - 1 / (n + 1))^(gamma + 1), which gives step i a weight like
i^gamma, at any length of the run alike; gamma follows from the width sigma_rel of that profile relative to the run.
Source: EDM2, arXiv 2312.02696, section 3.1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Generic, TypeVar

import numpy as np
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gmtool.distributed import local
from gmtool.errors import UserError
from gmtool.training.checkpoint import EMA
from gmtool.training.settings import AverageSettings

N = TypeVar("N", bound=nn.Module)

RAMP = 0.05
"""The half-life of an average by images is at most this share of the images seen."""


def exponential(decay: float, step: int, knots: Sequence[tuple[int, float]] = ()) -> float:
    """The decay at step ``step`` (from 0), ramped up at first. knots: steps from which on it is another one."""
    later = [value for start, value in knots if step >= start]
    return min(later[-1] if later else decay, (1 + step) / (10 + step))


def by_images(half_life: int, batch_size: int, step: int) -> float:
    """The decay at step ``step`` (from 0) of batches of ``batch_size``; the first step forgets the start."""
    images = min(half_life, RAMP * batch_size * step)
    return 0.5 ** (batch_size / images) if images else 0.0


@lru_cache
def power_exponent(width: float) -> float:
    """gamma >= 0 of the power law of relative width sigma_rel, in (0, 1 / sqrt(12)].

    It solves sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), a cubic. Source: EDM2, equation 123.
    """
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_law(width: float, step: int) -> float:
    """The decay at step ``step`` (from 0): 0 at first, whatever the width."""
    return (1 - 1 / (step + 1)) ** (power_exponent(width) + 1)


@dataclass(frozen=True)
class Average(Generic[N]):
    """An average: its name, which ``sample --ema`` takes, its decay at a step from 0, and the averaged network."""

    name: str
    decay: Callable[[int], float]
    network: N

    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after step ``step`` (from 0)."""
        average = get_ema_multi_avg_fn(self.decay(step))
        mine, new = (list(map(local, module.parameters())) for module in (self.network, network))
        average(mine, new, step)


def make_averages(network: N, settings: AverageSettings, batch_size: int) -> tuple[Average[N], ...]:
    """The averages that the settings ask for, in the order of their names, begun at the network's weights.

    batch_size: images a step.
    """

    def begin(name: str, decay: Callable[[int], float]) -> Average[N]:
        return Average(name, decay, copy.deepcopy(network).requires_grad_(False).eval())

    rules: list[Callable[[int], float]] = [partial(exponential, decay) for decay in settings.ema]
    if settings.decay_knots:
        rules[0] = partial(exponential, settings.ema[0], knots=settings.decay_knots)
    rules += [partial(by_images, half_life, batch_size) for half_life in settings.ema_images]
    rules += [partial(power_law, width) for width in settings.ema_power]
    return tuple(begin(name, rule) for name, rule in zip(settings.names, rules, strict=True))


def average_file(name: str | None, names: Sequence[str]) -> str:
    """The file in a checkpoint of the average ``name`` of ``names``, by default the first. Raises UserError."""
    if name is None or name == names[0]:
        return EMA
    if name not in names:
        raise UserError(f"--ema {name}: the run keeps {', '.join(names)}")
    return f"ema-{name}.safetensors"
