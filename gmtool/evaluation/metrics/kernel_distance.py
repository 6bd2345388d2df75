"""Kernel distance: the unbiased estimate of the squared maximum mean discrepancy with a cubic kernel.

    sum_{i != j} (k(x_i, x_j) + k(y_i, y_j)) / (n (n - 1)) - 2 mean_{ij} k(x_i, y_j),    k(x, y) = (x.y / D + 1)^3

It is averaged over random subsets of n features, and is KID if the features are Inception's. Because it is unbiased, it
scatters around 0 for equal distributions and may be negative. Source: Binkowski et al. 2018, arXiv 1801.01401.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gmtool.evaluation.metric import IMAGES, REFERENCES, Context, Pair, bounded
from gmtool.evaluation.report import Measurement


def measure(
    known: Pair[Tensor], context: Context, images: int = IMAGES, references: int = REFERENCES
) -> tuple[Measurement]:
    """See `gmtool.evaluation.metric.Measure`."""
    chosen = bounded(known, context.seed, images, references)
    return (kernel_distance(chosen.images, chosen.reference, context.seed),)


def kernel_distance(
    generated: Tensor, reference: Tensor, seed: int, subsets: int = 100, subset_size: int = 1000
) -> Measurement:
    """Mean and standard deviation of the kernel distance over random subsets, as torch-fidelity draws them, in float64.

    generated (N, D), reference (M, D): features.
    subsets: number of subsets, of min(subset_size, N, M) features from either set.
    """
    from torch_fidelity.metric_kid import kernel_mmd

    size = min(subset_size, len(generated), len(reference))
    # subsets as large as both sets are all the same
    count = 1 if size == len(generated) == len(reference) else subsets
    draw = np.random.RandomState(seed % 2**32)  # torch-fidelity's
    distances = []
    for _ in range(count):  # in float64 alone, since copies of all features may not fit
        first, second = (
            features[torch.from_numpy(draw.choice(len(features), size, replace=False))].double().cpu().numpy()
            for features in (generated, reference)
        )
        distances.append(kernel_mmd(first, second))
    return Measurement(float(np.mean(distances)), float(np.std(distances)), len(generated), len(reference))
