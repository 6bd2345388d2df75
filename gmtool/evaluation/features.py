"""What images are compared by: a vector of features an image, and the mean and covariance of such vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gmtool.distributed import World
from gmtool.errors import UserError
from gmtool.progress import Progress


@dataclass(frozen=True, eq=False)
class Features:
    """vectors: (N, D) float32 on the CPU. logits: (N, classes) float32 of Inception's classifier, or None."""

    vectors: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, index: Tensor) -> Features:
        """The features of some images."""
        return Features(self.vectors[index], None if self.logits is None else self.logits[index])


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean (D,) and covariance (D, D) of ``count`` features, float64; ``count`` is None when a file does not say."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None


class Extractor(Protocol):
    """Features of images."""

    @property
    def name(self) -> str:
        """The extractor in words, exact enough to know whether two figures may be compared."""

    @property
    def size(self) -> int:
        """D of a feature vector."""

    def __call__(self, images: Tensor) -> Features:
        """Features of images uint8 (B, 3, S, S)."""


def feature_statistics(features: Tensor, rows_at_once: int = 1024) -> FeatureStatistics:
    """Mean and unbiased covariance of features (N, D), N >= 2, in two passes of float64.

    rows_at_once: rows of the float64 copies, which bounds the memory beyond the features themselves.
    """
    count, dim = features.shape
    mean = torch.zeros(dim, dtype=torch.float64)
    for part in features.split(rows_at_once):
        mean += part.double().sum(0) / count
    scatter = torch.zeros(dim, dim, dtype=torch.float64)
    for part in features.split(rows_at_once):
        centred = part.double() - mean
        scatter += centred.T @ centred
    return FeatureStatistics(mean.numpy(), (scatter / (count - 1)).numpy(), count)


def extract_features(
    extractor: Extractor, batches: Iterable[Tensor], total: int, what: str, progress: Progress
) -> Features:
    """Features of ``total`` images that come in batches uint8 (B, 3, S, S); ``what`` they are, for the progress bar."""
    found = []
    progress.begin(f"features of {what}", total, "images")
    try:
        for images in batches:
            found.append(extractor(images))
            progress.advance(len(images))
    finally:
        progress.end()
    if not found:  # of several processes, some may have no image to see to
        return Features(torch.empty(0, extractor.size))
    return _joined(found)


def gather_features(features: Features, world: World) -> Features:
    """The features of all processes in the order of ranks, for the first process; the others keep their own."""
    logits = {} if features.logits is None else {"logits": features.logits}
    found = [
        Features(each["vectors"], each.get("logits")) for each in world.gather({"vectors": features.vectors, **logits})
    ]
    return _joined(found) if found else features


def expect_finite(features: Features, whose: str) -> None:
    """Raise UserError, naming ``whose``, where a feature is infinite or no number: every metric would be neither."""
    good = features.vectors.isfinite().all(1)
    if not good.all():
        raise UserError(
            f"{whose}: the features of {int((~good).sum())} of {len(features)} images are infinite or not a number: "
            "make them again"
        )


def _joined(parts: Sequence[Features]) -> Features:
    """Parts of a set of images, one after another."""
    logits = [each.logits for each in parts if each.logits is not None]
    return Features(torch.cat([each.vectors for each in parts]), torch.cat(logits) if logits else None)
