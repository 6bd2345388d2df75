"""All metrics between two sets of features, and the two disjoint sets of real images that give the floor of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gmtool.evaluation.features import Features
from gmtool.evaluation.fidelity import (
    FeatureStatistics,
    feature_statistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from gmtool.evaluation.report import Figure, Measurement, Metric
from gmtool.progress import Progress
from gmtool.streams import generator

NEIGHBOUR_IMAGES, NEIGHBOUR_REFERENCES = 50_000, 10_000
"""Images that the metrics of pairs (kernel distance, precision, recall) look at: the sizes of ADM's evaluation."""


@dataclass(frozen=True, eq=False)
class RealPair:
    """Real images in the place of the generated ones, and the real images that they are compared with; disjoint."""

    images: Features
    reference: Features


@dataclass(frozen=True)
class Settings:
    """neighbours: of precision and recall. seed: of subsets. device: where distances are computed."""

    neighbours: int
    seed: int
    device: torch.device


def real_pair(reference: Features, other: Features | None, count: int, seed: int) -> RealPair | None:
    """Two disjoint sets of real images, sized as ``count`` generated images and their reference as nearly as can be.

    other: at most ``count`` real images that are not in the reference, when there are any; the pair is then these and
    the whole reference. Without them the reference is split at random: ``count`` and the rest when
    it holds at least twice ``count``, else halves. None when a side would have fewer than 2 images.
    """
    pair = None if other is None else RealPair(other, reference)
    if pair is None:
        order = torch.randperm(len(reference), generator=generator(seed, "real pair"))
        size = count if len(reference) >= 2 * count else len(reference) // 2
        pair = RealPair(reference.rows(order[:size]), reference.rows(order[size:]))
    return pair if min(len(pair.images), len(pair.reference)) >= 2 else None


def figures_of(
    generated: Features,
    reference: Features | None,
    statistics: FeatureStatistics | None,
    real: RealPair | None,
    settings: Settings,
    progress: Progress,
) -> tuple[Figure, ...]:
    """All metrics that the data allow.

    reference: the real images. statistics: of a larger set that the reference was drawn from, for the Frechet distance
    alone; its real counterpart is then left out, because the file says nothing about parts of that set.
    """
    progress.begin("metrics", 1 if real is None else 2, "comparisons")
    try:
        found = _measure(generated, reference, statistics, settings)
        progress.advance()
        floor = {} if real is None else _measure(real.images, real.reference, None, settings)
        progress.advance(0 if real is None else 1)
    finally:
        progress.end()
    if statistics is not None:
        floor.pop("frechet_distance", None)
    return tuple(Figure(metric, measurement, floor.get(metric)) for metric, measurement in found.items())


def _measure(
    images: Features, reference: Features | None, statistics: FeatureStatistics | None, settings: Settings
) -> dict[Metric, Measurement]:
    found: dict[Metric, Measurement] = {}
    if statistics is None and reference is not None:
        statistics = feature_statistics(reference.vectors)
    if statistics is not None:
        distance = frechet_distance(feature_statistics(images.vectors), statistics)
        found["frechet_distance"] = Measurement(distance, None, len(images), statistics.count)
    if images.logits is not None:
        score = inception_score(images.logits, settings.seed)
        found["inception_score"] = Measurement(score.value, score.spread, len(images), None)
    if reference is not None:
        near, far = (
            _subset(each, count, settings.seed).vectors
            for each, count in ((images, NEIGHBOUR_IMAGES), (reference, NEIGHBOUR_REFERENCES))
        )
        kernel = kernel_distance(near, far, settings.seed)
        found["kernel_distance"] = Measurement(kernel.value, kernel.spread, len(near), len(far))
        shares = precision_recall(near, far, settings.neighbours, settings.device)
        found["precision"] = Measurement(shares.precision, None, len(near), len(far))
        found["recall"] = Measurement(shares.recall, None, len(near), len(far))
    return found


def _subset(features: Features, count: int, seed: int) -> Features:
    """``features``, or a random ``count`` of them when there are more."""
    if len(features) <= count:
        return features
    return features.rows(torch.randperm(len(features), generator=generator(seed, "metric subset"))[:count])
