"""How saturated images are, which strong guidance makes them: by their values alone, whatever the features.

magnitude        mean |v| of the pixel values v in [-1, 1]: 0 for grey, 1 for nothing but the ends of the range
saturated share  share of the values at either end, 0 or 255: where decoding has clipped, or paper is white

Neither is good or bad by itself: what counts is the same of real images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST, HIGHEST = 0, 255


@dataclass(frozen=True)
class Saturation:
    """The two figures over all values of ``images`` images; see the module."""

    magnitude: float
    share: float
    images: int


def saturation(batches: Iterable[Tensor]) -> Saturation:
    """The saturation of images uint8 (B, 3, S, S), of which there is at least one."""
    counts, images = torch.zeros(HIGHEST + 1, dtype=torch.int64), 0
    for batch in batches:
        counts += torch.bincount(batch.flatten(), minlength=HIGHEST + 1)
        images += len(batch)
    shares = counts.double() / counts.sum()
    values = torch.linspace(-1, 1, HIGHEST + 1, dtype=torch.float64)
    return Saturation(float((shares * values.abs()).sum()), float(shares[LOWEST] + shares[HIGHEST]), images)
