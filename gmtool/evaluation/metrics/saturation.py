"""Saturation of images, which strong guidance increases; it depends on the pixels alone, not on features.

magnitude        mean |v| of the pixel values v in [-1, 1]: 0 for mid-grey, 1 if all values are at the ends of the range
saturated share  fraction of the values at either end, 0 or 255, where decoding has clipped or paper is white
colour           mean saturation of the pixels in HSV, (max - min) / max over red, green and blue: 0 for grey

None of them is good or bad in itself: compare with the value of real images.
Source: HSV as in Smith, Color Gamut Transform Pairs, 1978; the other two are plain statistics.
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
    """Magnitude, saturated share and colour saturation, with 95 % intervals; see the module.

    batches: images uint8 (B, 3, S, S) of one size, at least one in all.
    """
    # as plain numbers: small tensors kept among large ones that are freed fragment the memory, 10 MB per batch
    means: list[list[float]] = []
    for batch in batches:
        least, most = (extreme.float() for extreme in batch.aminmax(dim=1))
        per_pixel = (
            (batch.double() / 127.5 - 1).abs(),
            ((batch == LOWEST) | (batch == HIGHEST)).float(),
            (most - least) / most.clamp(min=1),
        )
        means += torch.stack([values.flatten(1).mean(1, dtype=torch.float64) for values in per_pixel], 1).tolist()
    magnitude, ends, colour = (_mean(values) for values in torch.tensor(means, dtype=torch.float64).T.contiguous())
    return magnitude, ends, colour


def _mean(values: Tensor) -> Measurement:
    """The mean of values (N,), one per image, with its interval by the central limit theorem."""
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Measurement(mean, None, count, None)
    wide = 1.96 * float(values.std()) / count**0.5
    return Measurement(mean, None, count, None, mean - wide, mean + wide)
