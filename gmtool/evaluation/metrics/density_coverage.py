"""Density and coverage: precision and recall that are robust to outliers.

With B(x) the ball around a real image x whose radius is the distance to its k-th nearest real neighbour:

density    (1 / (k M)) sum over generated images y of the number of balls B(x) that contain y: 1 for equal
           distributions, above 1 if samples concentrate where real images are dense
coverage   fraction of real images x whose ball B(x) contains a generated image: about 1 - (N / (N + M))^k for equal
           distributions, with M generated and N real images

Coverage grows with the number of generated images until it tells nothing: hence there are no more of them than real
ones, as in the paper, which takes equally many, for which it is 1 - (1/2)^k. k is 5, as there.
Source: Naeem et al. 2020, arXiv 2002.09797.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmtool.evaluation.metric import REFERENCES, Context, Pair, bounded
from gmtool.evaluation.report import Measurement


def measure(known: Pair[Tensor], context: Context, references: int = REFERENCES) -> tuple[Measurement, Measurement]:
    """See `gmtool.evaluation.metric.Measure`: density, then coverage, of no more generated images than real ones."""
    references = min(references, len(known.reference))
    chosen = bounded(known, context.seed, references, references)
    return density_coverage(chosen.images, chosen.reference, context.device)


def density_coverage(
    generated: Tensor, reference: Tensor, device: torch.device, neighbours: int = 5, rows_at_once: int = 1024
) -> tuple[Measurement, Measurement]:
    """Density and coverage, computed in float64 on ``device``; see the module.

    generated (M, D), reference (N, D): features of generated and of real images, N >= 2.
    neighbours: k; N - 1 is used if that is smaller.
    rows_at_once: rows of the distance matrices in memory at a time.
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
