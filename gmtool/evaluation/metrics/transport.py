"""Transport distance between the latents of samples and real ones: W2^2 and sliced W2^2.

Source: MM-FM (Luo et al., CVPR 2026), section 4.1; see `gmtool.evaluation.trajectory`.
"""

from __future__ import annotations

from torch import Tensor

from gmtool.evaluation.metric import Context, Pair
from gmtool.evaluation.report import Measurement
from gmtool.evaluation.trajectory import sliced_distance, transport_distance
from gmtool.streams import generator


def measure(known: Pair[Tensor], context: Context) -> tuple[Measurement, Measurement]:
    """See `gmtool.evaluation.metric.Measure`."""
    exact = transport_distance(known.images, known.reference)
    sliced = sliced_distance(known.images, known.reference, generator(context.seed, "directions"))
    sizes = len(known.images), len(known.reference)
    return Measurement(exact, None, *sizes), Measurement(sliced, None, *sizes)
