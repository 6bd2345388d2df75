"""What images are compared by: a feature vector per image, and the mean and covariance of such vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    """The features of images, a row per image, float32 on the CPU.

    vectors: (N, D). logits: (N, classes) of Inception's classifier, or None. spatial: (N, 2023), features of sFID, or
    None.
    """

    vectors: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, index: Tensor) -> Features:
        """The features of the images ``index``, (n,) int64 or bool (N,)."""
        return features_of({name: tensor[index] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors (N, ...) that are not None, by field name."""
        tensors = {"vectors": self.vectors, "logits": self.logits, "spatial": self.spatial}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def features_of(tensors: Mapping[str, Tensor]) -> Features:
    """The features whose `Features.tensors` (N, ...) these are. Raises KeyError without vectors."""
    return Features(tensors["vectors"], tensors.get("logits"), tensors.get("spatial"))


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
    """Mean m = sum_i f_i / N and unbiased covariance sum_i (f_i - m)(f_i - m)^T / (N - 1), in two passes of float64.

    features (N, D): f, N >= 2.
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
    """Features of ``total`` images that come in batches uint8 (B, 3, S, S).

    what: the images in words, for the progress bar. Raises ValueError when another number of images comes.
    """
    features: dict[str, Tensor] = {}
    done = 0
    progress.begin(f"features of {what}", total, "images")
    try:
        for images in batches:
            here = extractor(images).tensors()
            if not features:  # in one piece from the start, since two copies of all features may not fit
                features = {name: torch.empty(total, *tensor.shape[1:]) for name, tensor in here.items()}
            for name, tensor in here.items():
                features[name][done : done + len(tensor)] = tensor
            done += len(images)
            progress.advance(len(images))
    finally:
        progress.end()
    if not features:  # of several processes, some may have no image to see to
        return Features(torch.empty(0, extractor.size))
    if done != total:
        raise ValueError(f"{done} images came, not {total}")
    return features_of(features)


def gather_features(features: Features, world: World) -> Features:
    """The features of all processes in the order of ranks, for the first process; the others keep their own."""
    gathered = world.gather(features.tensors())
    return _joined([features_of(tensors) for tensors in gathered]) if gathered else features


def expect_finite(features: Features, whose: str) -> None:
    """Raise UserError, naming ``whose``, where a feature is infinite or no number: every metric would be neither."""
    good = features.vectors.isfinite().all(1)
    if not good.all():
        raise UserError(
            f"{whose}: the features of {int((~good).sum())} of {len(features)} images are infinite or not a number: "
            "make them again"
        )


def _joined(parts: Sequence[Features]) -> Features:
    """Parts of a set of images, one after another; a process without images has no part of some."""
    if len(parts) == 1:  # not copied, since two copies of all features may not fit
        return parts[0]
    every = [part.tensors() for part in parts if len(part)] or [parts[0].tensors()]
    return features_of({name: torch.cat([tensors[name] for tensors in every]) for name in every[0]})
