"""What a metric is: a function of what is known of a set of images, which `gmtool.evaluation.metrics` lists.

The same function is applied twice, to the generated images and to real ones in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from gmtool.evaluation.features import FeatureStatistics
from gmtool.evaluation.metrics import MetricSettings
from gmtool.evaluation.report import Measurement
from gmtool.evaluation.trajectory import FollowedPath
from gmtool.streams import generator

IMAGES, REFERENCES = 50_000, 10_000
"""Images at most on either side of a metric of pairs of images: the sizes of ADM's evaluation."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Pair(Generic[T]):
    """What is known of a set of images, and of the reference that it is compared with."""

    images: T
    reference: T


@dataclass(frozen=True, eq=False)
class Known:
    """The data that metrics are computed from, a field for each need of a metric; None where it is not available.

    statistics: means and covariances of features; spatial: of spatial ones. features: (N, D) float32. training: the
    same, with the images that the run was trained on as the reference. logits: (N, classes) float32 of Inception's
    classifier. distances: the Fréchet distances on the features of the six extractors of FDr6, by their names.
    images: gives their batches, uint8 (B, 3, S, S), once more each time. latents: equally many of both sides,
    normalised, (N, C, H, W). paths: gives the paths on which the run's flow moves them.
    """

    statistics: Pair[FeatureStatistics] | None = None
    spatial: Pair[FeatureStatistics] | None = None
    features: Pair[Tensor] | None = None
    training: Pair[Tensor] | None = None
    logits: Tensor | None = None
    distances: Mapping[str, Measurement] | None = None
    images: Callable[[], Iterator[Tensor]] | None = None
    latents: Pair[Tensor] | None = None
    paths: Callable[[], Iterator[FollowedPath]] | None = None


@dataclass(frozen=True)
class Context:
    """What every metric is computed with.

    settings: of the metrics. seed: of random subsets and directions. device: where distances are computed.
    """

    settings: MetricSettings
    seed: int
    device: torch.device


class Measure(Protocol):
    """What a row of the table names."""

    def __call__(self, known: Any, context: Context) -> tuple[Measurement, ...]:
        """A measurement for each metric of the row, from the field of `Known` that the row needs."""


def bounded(pair: Pair[Tensor], seed: int, images: int, references: int) -> Pair[Tensor]:
    """The pair of features (N, D) and (M, D), reduced to at most ``images`` and ``references`` random rows."""
    return Pair(_some(pair.images, images, seed), _some(pair.reference, references, seed))


def _some(rows: Tensor, count: int, seed: int) -> Tensor:
    if len(rows) <= count:
        return rows
    return rows[torch.randperm(len(rows), generator=generator(seed, "metric subset"))[:count]]
