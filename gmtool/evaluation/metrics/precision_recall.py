"""Precision and recall of manifolds (Kynkäänniemi et al. 2019), by torch-fidelity.

precision   share of generated images inside a ball around a real one that reaches to its k-th nearest real neighbour
recall      the same with the roles exchanged: share of real images inside a ball of the generated ones

Published figures on ImageNet 256 (GMFlow, arXiv 2504.05304, section 4, which follows ADM, arXiv 2105.05233) are of
Inception's pooled features, k = 3, 50,000 samples against the 10,000 images in ADM's reference file:
``gmtool eval --features inception --reference VIRTUAL_imagenet256_labeled.npz``. The defaults here are these. (The
original paper uses VGG16's features, and so does torch-fidelity's own command line.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmtool.evaluation.metric import IMAGES, REFERENCES, Context, Pair, bounded
from gmtool.evaluation.report import Measurement

ENTRIES = 2**23
"""Of a distance matrix that is in memory."""


def measure(
    known: Pair[Tensor], context: Context, images: int = IMAGES, references: int = REFERENCES
) -> tuple[Measurement, Measurement]:
    """See `gmtool.evaluation.metric.Measure`: precision, then recall."""
    chosen = bounded(known, context.seed, images, references)
    return precision_recall(chosen.images, chosen.reference, context.settings.neighbours, context.device)


def precision_recall(
    generated: Tensor, reference: Tensor, neighbours: int, device: torch.device, rows_at_once: int = 1024
) -> tuple[Measurement, Measurement]:
    """Precision and recall of features (N, D) and (M, D), N and M >= 2.

    neighbours: k; in a set of k images or fewer the farthest neighbour stands in. rows_at_once: rows of the distance
    matrices at most; there are fewer where they are long, which bounds the memory.
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
