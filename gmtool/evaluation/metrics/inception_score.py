"""Inception score: exp E_x KL(p(y | x) || p(y)), with p(y | x) the class probabilities of Inception.

It uses no reference. It is 1 if all images get the same probabilities, and at most the number of classes.
Source: Salimans et al. 2016, arXiv 1606.03498.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gmtool.evaluation.metric import Context
from gmtool.evaluation.report import Measurement


def measure(known: Tensor, context: Context) -> tuple[Measurement]:
    """See `gmtool.evaluation.metric.Measure`."""
    return (inception_score(known, context.seed),)


def inception_score(logits: Tensor, seed: int, splits: int = 10) -> Measurement:
    """Mean and standard deviation of the Inception score over random parts of the images, those of torch-fidelity.

    logits (N, classes): of Inception's classifier.
    splits: number of parts; fewer if a part would have less than 10 images.
    """
    parts, count = max(1, min(splits, len(logits) // 10)), len(logits)
    order = torch.from_numpy(np.random.RandomState(seed % 2**32).permutation(count))  # torch-fidelity's
    scores = []
    for part in range(parts):  # in float64 alone, since several copies of all logits take more than the features
        some = logits[order[part * count // parts : (part + 1) * count // parts]].double()
        p, log_p = some.softmax(1), some.log_softmax(1)
        divergence = (p * (log_p - p.mean(0, keepdim=True).log())).sum(1)
        scores.append(float(divergence.mean().exp()))
    return Measurement(float(np.mean(scores)), float(np.std(scores)), count, None)
