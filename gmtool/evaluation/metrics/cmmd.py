"""CMMD: 1000 times the squared maximum mean discrepancy of CLIP embeddings.

    1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)),    k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10,

over all pairs, those of an image with itself included. This biased estimate is 0 for equal sets and never negative.
Embeddings have length 1. Source: Jayasumana et al. 2024, arXiv 2401.09603.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmtool.evaluation.metric import Context, Pair, bounded
from gmtool.evaluation.report import Measurement

SIGMA, SCALE = 10.0, 1000.0

MOST = 30_000
"""Largest number of images on either side, as in the published evaluations."""


def measure(known: Pair[Tensor], context: Context, images: int = MOST) -> tuple[Measurement]:
    """See `gmtool.evaluation.metric.Measure`."""
    chosen = bounded(known, context.seed, images, images)
    distance = cmmd(chosen.images, chosen.reference, context.device)
    return (Measurement(distance, None, len(chosen.images), len(chosen.reference)),)


def cmmd(generated: Tensor, reference: Tensor, device: torch.device, rows_at_once: int = 1024) -> float:
    """CMMD of two sets of embeddings, computed in float64 on ``device``; see the module.

    generated (N, D), reference (M, D): embeddings of length 1.
    rows_at_once: rows of the kernel matrices in memory at a time.
    """
    sides = [embeddings.to(device, torch.float64) for embeddings in (generated, reference)]
    within = [_mean_kernel(side, side, rows_at_once) for side in sides]
    return SCALE * max(0.0, sum(within) - 2 * _mean_kernel(sides[0], sides[1], rows_at_once))


def _mean_kernel(first: Tensor, second: Tensor, rows_at_once: int) -> float:
    """The mean of k - 1 over all pairs: embeddings of length 1 are so near each other that k itself is nearly 1."""
    total, squares = 0.0, second.square().sum(1)
    for part in first.split(rows_at_once):
        distances = (part.square().sum(1, keepdim=True) + squares - 2 * part @ second.T).clamp(min=0)
        total += float(torch.expm1(-distances / (2 * SIGMA**2)).sum())
    return total / (len(first) * len(second))
