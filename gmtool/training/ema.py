"""Moving averages of the weights (EMA), several at once.

With w_n the weights after step n = 0, 1, ..., an average is

    a_n = b_n a_(n-1) + (1 - b_n) w_n,

with one of three decays b_n:

exponential   min(decay, (1 + n) / (10 + n)); the ramp makes an early average forget the initial weights
by images     0.5^(B / min(h, B n / 20)), B the batch size, h the half-life in images, B n the images seen.
              Source: EDM, arXiv 2206.00364, appendix F.3; GMFlow's public code
power law     (1 - 1 / (n + 1))^(gamma + 1), which weights step i by i^gamma, whatever the length of the run; gamma
              follows from sigma_rel, the width of that profile relative to the run.
              Source: EDM2, arXiv 2312.02696, section 3.1
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
"""Upper bound of an average's half-life in images, as a fraction of the images seen."""


def exponential(decay: float, step: int, knots: Sequence[tuple[int, float]] = ()) -> float:
    """The exponential decay b_n at step n = ``step``; see the module.

    knots: pairs of a step and the decay from that step on.
    """
    later = [value for start, value in knots if step >= start]
    return min(later[-1] if later else decay, (1 + step) / (10 + step))


def by_images(half_life: int, batch_size: int, step: int) -> float:
    """The decay b_n by images at step n = ``step``; 0 at the first step. See the module.

    half_life: in images. batch_size: images per step.
    """
    images = min(half_life, RAMP * batch_size * step)
    return 0.5 ** (batch_size / images) if images else 0.0


@lru_cache
def power_exponent(width: float) -> float:
    """gamma >= 0 of a power law, the root of sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), a cubic.

    width: sigma_rel in (0, 1 / sqrt(12)]. Source: EDM2, equation 123.
    """
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_law(width: float, step: int) -> float:
    """The power-law decay b_n at step n = ``step``; 0 at the first step. See the module. width: sigma_rel."""
    return (1 - 1 / (step + 1)) ** (power_exponent(width) + 1)


@dataclass(frozen=True)
class Average(Generic[N]):
    """An average: its name for ``sample --ema``, its decay b_n as a function of n, and the averaged network."""

    name: str
    decay: Callable[[int], float]
    network: N

    def update(self, network: nn.Module, step: int) -> None:
        """a_n from a_(n-1) and the weights of ``network`` after step n = ``step``, in place."""
        average = get_ema_multi_avg_fn(self.decay(step))
        mine, new = (list(map(local, module.parameters())) for module in (self.network, network))
        average(mine, new, step)


def make_averages(network: N, settings: AverageSettings, batch_size: int) -> tuple[Average[N], ...]:
    """The averages that the settings ask for, in the order of their names, initialised with the network's weights.

    batch_size: images per step, over all processes.
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
    """The file in a checkpoint of the average ``name``, by default the first of ``names``.

    Raises UserError for a name that is none of them.
    """
    if name is None or name == names[0]:
        return EMA
    if name not in names:
        raise UserError(f"--ema {name}: the run keeps {', '.join(names)}")
    return f"ema-{name}.safetensors"
