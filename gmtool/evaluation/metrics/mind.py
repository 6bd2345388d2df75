"""MIND, the Monge Inception distance: a sliced Wasserstein distance of features.

    3 D E_v W2^2(v.x, v.y)

with v a random unit direction and W2^2 the squared 2-Wasserstein distance of the projected features. It has the scale
of the Fréchet distance, is sensitive to more than two moments, and is stable from a few thousand images on. A shift of
all features by m adds 3 |m|^2. Source: Berthet et al. 2026, arXiv 2605.06797.
"""

from __future__ import annotations

from torch import Tensor

from gmtool.evaluation.metric import REFERENCES, Context, Pair, bounded
from gmtool.evaluation.report import Measurement
from gmtool.evaluation.trajectory import sliced_distance
from gmtool.streams import generator


def measure(known: Pair[Tensor], context: Context, images: int = REFERENCES) -> tuple[Measurement]:
    """See `gmtool.evaluation.metric.Measure`. Of equally many images on either side, at most ``images``."""
    size = min(len(known.images), len(known.reference), images)
    chosen = bounded(known, context.seed, size, size)
    return (Measurement(mind(chosen.images, chosen.reference, context.seed), None, size, size),)


def mind(generated: Tensor, reference: Tensor, seed: int, directions: int = 1000) -> float:
    """MIND in squared feature units, computed in float64; see the module.

    generated, reference (N, D): features of equally many images.
    directions: number of random directions v.
    """
    return 3 * generated.shape[1] * sliced_distance(generated, reference, generator(seed, "directions"), directions)
