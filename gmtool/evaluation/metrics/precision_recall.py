"""Improved precision and recall, by torch-fidelity.

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

import torch
from torch import Tensor

from gmtool.evaluation.metric import IMAGES, REFERENCES, Context, Pair, bounded
from gmtool.evaluation.report import Measurement

ENTRIES = 2**23
"""Largest number of entries of a distance matrix in memory."""


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
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    scores = prc_features_to_metric(
        # distances by matrix products cancel digits, which decides ties between near neighbours: hence float64
        generated.to(device, torch.float64),
        reference.to(device, torch.float64),
        prc_neighborhood=min(neighbours, len(generated) - 1, len(reference) - 1),
        prc_batch_size=min(rows_at_once, 1 + ENTRIES // max(len(generated), len(reference))),
        save_cpu_ram=True,
        verbose=False,
    )
    precision, recall = (
        Measurement(scores[key], None, len(generated), len(reference))
        for key in (KEY_METRIC_PRECISION, KEY_METRIC_RECALL)
    )
    return precision, recall
