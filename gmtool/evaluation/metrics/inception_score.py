"""Inception score exp E KL(p(y|x) || p(y)) of the classifier's probabilities (Salimans et al. 2016), by torch-fidelity.

It knows no reference: 1 for images that all look alike or like nothing, the number of classes at most.
"""

from __future__ import annotations

from torch import Tensor

from gmtool.evaluation.metric import Context
from gmtool.evaluation.report import Measurement


def measure(known: Tensor, context: Context) -> tuple[Measurement]:
    """See `gmtool.evaluation.metric.Measure`."""
    return (inception_score(known, context.seed),)


def inception_score(logits: Tensor, seed: int, splits: int = 10) -> Measurement:
    """Inception score of class logits (N, classes), over ``splits`` random parts, fewer if they were below 10."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    scores = isc_features_to_metric(logits, splits=max(1, min(splits, len(logits) // 10)), rng_seed=seed % 2**32)
    return Measurement(scores[KEY_METRIC_ISC_MEAN], scores[KEY_METRIC_ISC_STD], len(logits), None)
