"""Improved precision and recall.

The manifold of a set is the union of balls around its images, each with the distance to the k-th nearest neighbour
within the set as its radius.

precision   fraction of generated images that lie in the manifold of the real images
recall      fraction of real images that lie in the manifold of the generated images

Source: Kynkäänniemi et al. 2019, arXiv 1904.06991, on features of VGG16. Published values on ImageNet 256 (GMFlow,
arXiv 2504.05304, section 4, which follows ADM, arXiv 2105.05233) use Inception's pooled features, k = 3, and 50,000
samples against the 10,000 images of ADM's reference file, which are the defaults here:
``gmtool eval --features inception --reference VIRTUAL_imagenet256_labeled.npz``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gmtool.evaluation.metric import IMAGES, REFERENCES, Context, Pair, bounded
from gmtool.evaluation.report import Measurement

ENTRIES = 2**23
"""Largest number of entries of a distance matrix in memory."""
COLUMNS = 2048
"""Centres in float64 at a time."""


def measure(
    known: Pair[Tensor], context: Context, images: int = IMAGES, references: int = REFERENCES
) -> tuple[Measurement, Measurement]:
    """See `gmtool.evaluation.metric.Measure`: precision, then recall."""
    chosen = bounded(known, context.seed, images, references)
    return precision_recall(chosen.images, chosen.reference, context.settings.neighbours, context.device)


def precision_recall(
    generated: Tensor, reference: Tensor, neighbours: int, device: torch.device, rows_at_once: int = 1024
) -> tuple[Measurement, Measurement]:
    """Precision and recall, computed in float64 on ``device``; see the module.

    generated (N, D), reference (M, D): features, N and M >= 2.
    neighbours: k; the size of the smaller set minus 1 is used if that is smaller.
    rows_at_once: largest number of rows of the distance matrices in memory; long rows are fewer.
    """
    sizes = len(generated), len(reference)
    k, rows = min(neighbours, min(sizes) - 1), min(rows_at_once, 1 + ENTRIES // max(sizes))
    precision = _covered(generated, reference, k, device, rows)
    recall = _covered(reference, generated, k, device, rows)
    return Measurement(precision, None, *sizes), Measurement(recall, None, *sizes)


def _covered(points: Tensor, centres: Tensor, k: int, device: torch.device, rows: int) -> float:
    """The fraction of points (N, D) that lie in the manifold of the centres (M, D)."""
    # the nearest neighbour of a centre is the centre itself
    radii = torch.cat([part.kthvalue(k + 1).values for part in _distances(centres, centres, device, rows)])
    inside = [(part <= radii).any(1) for part in _distances(points, centres, device, rows)]
    return float(torch.cat(inside).double().mean())


def _distances(points: Tensor, centres: Tensor, device: torch.device, rows: int) -> Iterator[Tensor]:
    """Distances of some points at a time to all centres (M, D), float64 (rows, M).

    Matrix products cancel digits, which decides ties between near neighbours: hence float64, of a few rows alone, since
    copies of all features may not fit.
    """
    for part in points.split(rows):
        some = part.to(device, torch.float64)
        others = (columns.to(device, torch.float64) for columns in centres.split(COLUMNS))
        yield torch.cat([torch.cdist(some, columns) for columns in others], dim=1)
