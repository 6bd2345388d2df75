"""Density and coverage (Naeem et al. 2020, arXiv 2002.09797): precision and recall that few outliers do not upset.

With B(x) the ball around a real image x that reaches to its k-th nearest real neighbour:

density    (1 / k M) sum over generated y of the number of balls B(x) that hold y: 1 for equal distributions, above 1
           where samples crowd where real images do
coverage   share of real images x whose ball B(x) holds a generated one: 1 - (1/2)^k at least, nearly, for equal sets

The paper's k is 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmtool.evaluation.metric import IMAGES, REFERENCES, Context, Pair, bounded
from gmtool.evaluation.report import Measurement


def measure(
    known: Pair[Tensor], context: Context, images: int = IMAGES, references: int = REFERENCES
) -> tuple[Measurement, Measurement]:
    """See `gmtool.evaluation.metric.Measure`: density, then coverage."""
    chosen = bounded(known, context.seed, images, references)
    return density_coverage(chosen.images, chosen.reference, context.device)


def density_coverage(
    generated: Tensor, reference: Tensor, device: torch.device, neighbours: int = 5, rows_at_once: int = 1024
) -> tuple[Measurement, Measurement]:
    """Density and coverage of features (M, D) against real ones (N, D), N >= 2, in float64.

    neighbours: k, at most N - 1. rows_at_once: rows of the distance matrices, which bounds the memory.
    """
    k = min(neighbours, len(reference) - 1)
    centres = reference.to(device, torch.float64)
    # the nearest of a point's neighbours is the point itself
    radii = torch.cat([torch.cdist(part, centres).kthvalue(k + 1).values for part in centres.split(rows_at_once)])
    hits, covered = 0, torch.zeros(len(reference), dtype=torch.bool, device=device)
    for part in generated.split(rows_at_once):
        inside = torch.cdist(part.to(device, torch.float64), centres) <= radii
        hits += int(inside.sum())
        covered |= inside.any(0)
    density, coverage = hits / (k * len(generated)), float(covered.double().mean())
    sizes = len(generated), len(reference)
    return Measurement(density, None, *sizes), Measurement(coverage, None, *sizes)
