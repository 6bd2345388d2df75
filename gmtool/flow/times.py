"""Times of training and of sampling, both shifted alike for high-dimensional latents."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

TimeDistribution = Literal["uniform", "logit-normal"]

REFERENCE_DIMENSION = 4096
"""Numbers in a latent for which no shift is needed (4 x 32 x 32)."""

RAE_LAST = 1e-3
"""The last time, before the shift, of the sampling grid of RAE and MM-FM, which does not reach the data."""

EARLIEST, LATEST = 1e-4, 1 - 1e-4
"""Training times stay inside: at the ends some transition has no width."""


def shift_time(t: Tensor, shift: float) -> Tensor:
    """t' = s t / (1 + (s - 1) t); s > 1 moves times toward the noise. Source: SD3, arXiv 2403.03206, section 5.3.2."""
    return shift * t / (1 + (shift - 1) * t)


def shift_for(dimension: int) -> float:
    """s = sqrt(dimension / 4096), at least 1, for latents of ``dimension`` numbers. Source: RAE, arXiv 2510.11690."""
    return max(1.0, math.sqrt(dimension / REFERENCE_DIMENSION))


def draw_times(count: int, distribution: TimeDistribution, shift: float, generator: torch.Generator) -> Tensor:
    """Training times (count,), float32, shifted: uniform, or the sigmoid of a standard normal."""
    if distribution == "uniform":
        raw = torch.rand(count, generator=generator, device=generator.device)
    else:
        raw = torch.randn(count, generator=generator, device=generator.device).sigmoid()
    return shift_time(raw, shift).clamp(EARLIEST, LATEST)


def time_quartiles(distribution: TimeDistribution, shift: float) -> Tensor:
    """The three times (3,), float32, between which a quarter of the training times lie each."""
    shares = torch.tensor([0.25, 0.5, 0.75])
    raw = shares if distribution == "uniform" else torch.special.ndtri(shares).sigmoid()
    return shift_time(raw, shift)


def time_grid(steps: int, shift: float, last: float = 0.0) -> Tensor:
    """The sampling grid (steps + 1,) in float64: even from 1 to ``last``, then shifted; by default it ends at 0."""
    return shift_time(torch.linspace(1, last, steps + 1, dtype=torch.float64), shift)


def expand(time: Tensor, x: Tensor) -> Tensor:
    """One grid time () for every sample of x: (B,), of x's type and on its device."""
    return time.to(x).expand(x.shape[0])
