"""Distances between two sets of features, generated and reference, by torch-fidelity's own functions.

Frechet distance   |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the Gaussians with the sets' means and covariances
                   (Heusel et al. 2017); FID when the features are Inception's.
kernel distance    unbiased squared MMD with the kernel (x.y / D + 1)^3, the mean over subsets (Binkowski et al. 2018).
precision, recall  share of generated points inside a ball around a reference point that reaches to its k-th
                   neighbour, and the other way round (Kynkaanniemi et al. 2019).
inception score    exp E KL(p(y|x) || p(y)) of the classifier's probabilities (Salimans et al. 2016), reference-free.

Features are float32 tensors (N, D) on the CPU; all sums run in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gmtool.errors import MachineError

KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 1000
SCORE_SPLITS = 10
ROWS_AT_ONCE = 1024
"""Rows of the float64 copies and of the distance matrices, which bounds the memory beyond the features themselves."""


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean (D,) and covariance (D, D) of ``count`` features, float64; ``count`` is None when a file does not say."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None


@dataclass(frozen=True)
class Estimate:
    """A metric averaged over parts of the data, and its standard deviation over the parts."""

    value: float
    spread: float


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of generated images that look real, and of real ones that the generator covers."""

    precision: float
    recall: float


def require_torch_fidelity() -> None:
    """Raise MachineError, in one line with the repair, unless torch-fidelity (hence torchvision) can be imported."""
    repair = "run `pip install --upgrade torch torchvision torch-fidelity`, all in one command"
    try:
        import torch_fidelity
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError, OSError or worse
        raise MachineError(
            f"torch {torch.__version__} and torchvision or torch-fidelity do not fit together "
            f"({type(error).__name__}: {error}): {repair}"
        ) from error
    if int(torch_fidelity.__version__.split(".")[0]) == 0 and int(torch_fidelity.__version__.split(".")[1]) < 4:
        raise MachineError(f"torch-fidelity {torch_fidelity.__version__} swaps precision and recall: {repair}")


def feature_statistics(features: Tensor) -> FeatureStatistics:
    """Mean and unbiased covariance of features (N, D), N >= 2, in two passes of float64."""
    count, dim = features.shape
    starts = range(0, count, ROWS_AT_ONCE)
    mean = torch.zeros(dim, dtype=torch.float64)
    for start in starts:
        mean += features[start : start + ROWS_AT_ONCE].double().sum(0) / count
    scatter = torch.zeros(dim, dim, dtype=torch.float64)
    for start in starts:
        centred = features[start : start + ROWS_AT_ONCE].double() - mean
        scatter += centred.T @ centred
    return FeatureStatistics(mean.numpy(), (scatter / (count - 1)).numpy(), count)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Squared 2-Wasserstein distance of the two Gaussians, in squared feature units; never below 0."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    statistics = ({"mu": each.mean, "sigma": each.covariance} for each in (first, second))
    return max(0.0, fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def kernel_distance(generated: Tensor, reference: Tensor, seed: int) -> Estimate:
    """Kernel distance over `KERNEL_SUBSETS` random subsets of min(`KERNEL_SUBSET_SIZE`, N) features of either set.

    Unbiased, so that equal distributions give values around 0, also below.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    size = min(KERNEL_SUBSET_SIZE, len(generated), len(reference))
    found = kid_features_to_metric(
        generated.double(),
        reference.double(),
        # subsets as large as both sets are all the same
        kid_subsets=1 if size == len(generated) == len(reference) else KERNEL_SUBSETS,
        kid_subset_size=size,
        rng_seed=seed % 2**32,
        verbose=False,
    )
    return Estimate(found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD])


def precision_recall(generated: Tensor, reference: Tensor, neighbours: int, device: torch.device) -> PrecisionRecall:
    """Precision and recall with the ``neighbours``-th nearest neighbour, or the farthest one of a smaller set."""
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    found = prc_features_to_metric(
        # distances by matrix products cancel digits, which decides ties between near neighbours: hence float64
        generated.to(device, torch.float64),
        reference.to(device, torch.float64),
        prc_neighborhood=min(neighbours, len(generated) - 1, len(reference) - 1),
        prc_batch_size=ROWS_AT_ONCE,
        save_cpu_ram=True,
        verbose=False,
    )
    return PrecisionRecall(found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL])


def inception_score(logits: Tensor, seed: int) -> Estimate:
    """Inception score of class logits (N, classes), over `SCORE_SPLITS` random parts, fewer if they were below 10."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    splits = max(1, min(SCORE_SPLITS, len(logits) // 10))
    found = isc_features_to_metric(logits, splits=splits, rng_seed=seed % 2**32)
    return Estimate(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])
