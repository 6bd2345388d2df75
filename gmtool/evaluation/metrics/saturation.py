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
    """Magnitude, saturated share, colour over all of images uint8 (B, 3, S, S), of which there is at least one.

    They are means over images of one size, whose 95 % intervals come with them.
    """
    means: list[Tensor] = []
    for batch in batches:
        least, most = (extreme.float() for extreme in batch.aminmax(dim=1))
        per_pixel = (
            (batch.double() / 127.5 - 1).abs(),
            ((batch == LOWEST) | (batch == HIGHEST)).float(),
            (most - least) / most.clamp(min=1),
        )
        means.append(torch.stack([values.flatten(1).mean(1, dtype=torch.float64) for values in per_pixel]))
    magnitude, ends, colour = (_mean(values) for values in torch.cat(means, dim=1))
    return magnitude, ends, colour


def _mean(values: Tensor) -> Measurement:
    """The mean of values (N,), an image each, with its interval by the central limit theorem."""
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Measurement(mean, None, count, None)
    wide = 1.96 * float(values.std()) / count**0.5
    return Measurement(mean, None, count, None, mean - wide, mean + wide)
