"""How saturated images are, which strong guidance makes them: by their values alone, whatever the features.

magnitude        mean |v| of the pixel values v in [-1, 1]: 0 for grey, 1 for nothing but the ends of the range
saturated share  share of the values at either end, 0 or 255: where decoding has clipped, or paper is white
colour           mean of the pixels' saturation in HSV, (max - min) / max over red, green and blue: 0 for grey

None of them is good or bad by itself: what counts is the same of real images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from gmtool.evaluation.metric import Context
from gmtool.evaluation.report import Measurement

LOWEST, HIGHEST = 0, 255


def measure(known: Callable[[], Iterator[Tensor]], _: Context) -> tuple[Measurement, Measurement, Measurement]:
    """See `gmtool.evaluation.metric.Measure`."""
    return saturation(known())


def saturation(batches: Iterable[Tensor]) -> tuple[Measurement, Measurement, Measurement]:
    """Magnitude, saturated share, colour over all of images uint8 (B, 3, S, S), of which there is at least one."""
    counts, images = torch.zeros(HIGHEST + 1, dtype=torch.int64), 0
    colour, pixels = 0.0, 0
    for batch in batches:
        counts += torch.bincount(batch.flatten(), minlength=HIGHEST + 1)
        images += len(batch)
        least, most = (each.float() for each in batch.aminmax(dim=1))
        colour += float(((most - least) / most.clamp(min=1)).sum(dtype=torch.float64))
        pixels += most.numel()
    shares = counts.double() / counts.sum()
    values = torch.linspace(-1, 1, HIGHEST + 1, dtype=torch.float64)
    magnitude, ends = float((shares * values.abs()).sum()), float(shares[LOWEST] + shares[HIGHEST])
    first, second, third = (Measurement(value, None, images, None) for value in (magnitude, ends, colour / pixels))
    return first, second, third
