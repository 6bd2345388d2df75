"""Times of training and of sampling, both shifted alike for high-dimensional latents.

The shift maps t to s t / (1 + (s - 1) t); s > 1 moves times toward the noise. Source: SD3, arXiv 2403.03206, section
5.3.2; for latents of D entries s = sqrt(D / 4096): RAE, arXiv 2510.11690.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gmtool.flow.names import TimeDistribution

REFERENCE_DIMENSION = 4096
"""Numbers in a latent for which no shift is needed (4 x 32 x 32)."""

RAE_LAST = 1e-3
"""The last time, before the shift, of the sampling grid of RAE and MM-FM, which does not reach the data."""

EARLIEST, LATEST = 1e-4, 1 - 1e-4
"""Training times stay inside: at the ends some transition has no width."""


_Time = TypeVar("_Time", float, Tensor)
"""One time, or times (B,)."""


def shift_time(t: Tensor, shift: float) -> Tensor:
    """t' = s t / (1 + (s - 1) t) (B,), for a shift s."""
    return shift * t / (1 + (shift - 1) * t)


def raw_time(t: _Time, shift: float) -> _Time:
    """The time before the shift: the inverse of `shift_time`."""
    return t / (shift - (shift - 1) * t)


def shift_for(dimension: int) -> float:
    """s = sqrt(dimension / 4096), at least 1, for latents of ``dimension`` entries."""
    return max(1.0, math.sqrt(dimension / REFERENCE_DIMENSION))


@dataclass(frozen=True)
class TrainingTimes:
    """The distribution of training times: uniform, or the sigmoid of a standard normal; then shifted by s."""

    distribution: TimeDistribution = "logit-normal"
    shift: float = 1.0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Times (count,), float32, on the generator's device."""
        if self.distribution == "uniform":
            raw = torch.rand(count, generator=generator, device=generator.device)
        else:
            raw = torch.randn(count, generator=generator, device=generator.device).sigmoid()
        return shift_time(raw, self.shift).clamp(EARLIEST, LATEST)

    def quartiles(self) -> Tensor:
        """The three times (3,), float32, that divide the training times into quarters."""
        shares = torch.tensor([0.25, 0.5, 0.75])
        raw = shares if self.distribution == "uniform" else torch.special.ndtri(shares).sigmoid()
        return shift_time(raw, self.shift)


def full_grid(intervals: int, shift: float = 1.0) -> Tensor:
    """Sampling times (intervals + 1,) in float64: even from 1 to 0, then shifted."""
    return shift_time(torch.linspace(1, 0, intervals + 1, dtype=torch.float64), shift)


def rae_grid(intervals: int, shift: float = 1.0) -> Tensor:
    """The grid of RAE and MM-FM, (intervals + 1,) in float64: even from 1 to 0.001, then shifted."""
    return shift_time(torch.linspace(1, RAE_LAST, intervals + 1, dtype=torch.float64), shift)


def sub_grid(t: float, s: float, parts: int, shift: float = 1.0) -> list[float]:
    """t = r_0 > ... > r_parts = s, even between t and s before the ``shift`` of the grid that both lie on."""
    first, last = (raw_time(time, shift) for time in (t, s))
    inner = shift_time(torch.linspace(first, last, parts + 1, dtype=torch.float64), shift).tolist()
    return [t, *inner[1:-1], s]


def expand(time: float, x: Tensor) -> Tensor:
    """One time for every sample of x: (B,), of x's type and on its device."""
    return x.new_full((x.shape[0],), time)
