"""Inception score: exp E_x KL(p(y | x) || p(y)), with p(y | x) the class probabilities of Inception, by torch-fidelity.

It uses no reference. It is 1 if all images get the same probabilities, and at most the number of classes.
Source: Salimans et al. 2016, arXiv 1606.03498.
"""

from __future__ import annotations

from torch import Tensor

from gmtool.evaluation.metric import Context
from gmtool.evaluation.report import Measurement


def measure(known: Tensor, context: Context) -> tuple[Measurement]:
    """See `gmtool.evaluation.metric.Measure`."""
    return (inception_score(known, context.seed),)


def inception_score(logits: Tensor, seed: int, splits: int = 10) -> Measurement:
    """Mean and standard deviation of the Inception score over random parts of the images; see the module.

    logits (N, classes): of Inception's classifier.
    splits: number of parts; fewer if a part would have less than 10 images.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    scores = isc_features_to_metric(logits, splits=max(1, min(splits, len(logits) // 10)), rng_seed=seed % 2**32)
    return Measurement(scores[KEY_METRIC_ISC_MEAN], scores[KEY_METRIC_ISC_STD], len(logits), None)
