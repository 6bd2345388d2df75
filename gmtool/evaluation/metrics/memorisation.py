"""Memorisation: the fraction of images that are closer to a training image than that is to any other training image.

It is 1 for copies of training images; a perfect generator reaches the fraction of new real images, which is shown
beside it. Distances are Euclidean, between features. Source: 1 minus the authenticity of Alaa et al. 2022, arXiv
2102.08921.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmtool.evaluation.metric import Context, Pair, bounded
from gmtool.evaluation.report import Measurement


def measure(known: Pair[Tensor], context: Context, images: int = 5000) -> tuple[Measurement]:
    """See `gmtool.evaluation.metric.Measure`: of at most ``images`` images against all training images."""
    chosen = bounded(known, context.seed, images, len(known.reference))
    return (memorised_share(chosen.images, chosen.reference, context.device),)


def memorised_share(images: Tensor, training: Tensor, device: torch.device, rows_at_once: int = 1024) -> Measurement:
    """The memorised fraction; see the module.

    images (N, D), training (M, D): features, M >= 2.
    rows_at_once: rows of the distance matrices in memory at a time.
    """
    distance, nearest = nearest_of(images, training, device, rows_at_once)
    # of the nearest training images: the distance to their own nearest, which is not they themselves
    between, _ = nearest_of(training[nearest], training, device, rows_at_once, but=nearest)
    return Measurement(float((distance < between).double().mean()), None, len(images), len(training))


def nearest_of(
    points: Tensor, others: Tensor, device: torch.device, rows_at_once: int = 1024, but: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """For each point, the distance to its nearest neighbour, float64 (N,), and the neighbour's index, int64 (N,).

    points (N, D); others (M, D): among which the neighbour is searched.
    rows_at_once: rows of the distance matrices in memory at a time.
    but (N,) int64: for each point, the index of one of ``others`` to exclude.
    """
    places = []
    for start in range(0, len(points), rows_at_once):
        part = points[start : start + rows_at_once].to(device)
        best = torch.full((len(part),), torch.inf, device=device)
        place = torch.zeros(len(part), dtype=torch.int64, device=device)
        for first in range(0, len(others), 8 * rows_at_once):
            distances = torch.cdist(part, others[first : first + 8 * rows_at_once].to(device))
            if but is not None:
                own = but[start : start + rows_at_once].to(device) - first
                here = (own >= 0) & (own < distances.shape[1])
                distances[here.nonzero().squeeze(1), own[here]] = torch.inf
            distance, index = distances.min(1)
            place = torch.where(distance < best, index + first, place)
            best = torch.minimum(distance, best)
        places.append(place.cpu())
    nearest = torch.cat(places)
    # the matrices find which is nearest; how near is not theirs to say, since their digits cancel for copies
    return (points.double() - others[nearest].double()).norm(dim=1), nearest
