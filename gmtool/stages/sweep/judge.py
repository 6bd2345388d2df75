"""Scoring of every point's samples: the extractors, and the features of the real images, computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gmtool.artifacts.run import RunFolder
from gmtool.evaluation.cache import feature_cache
from gmtool.evaluation.comparison import compared, measured
from gmtool.evaluation.extractors import extractor_row
from gmtool.evaluation.feature_plan import FeaturePlan
from gmtool.evaluation.features import Extractor, Features, expect_finite, extract_features, features_of
from gmtool.evaluation.metric import Context, Known
from gmtool.evaluation.metrics import METRICS, Row
from gmtool.evaluation.metrics.fdr6 import distances
from gmtool.evaluation.references import array_batches, reference_features, some_images
from gmtool.evaluation.report import Figure, Measurement
from gmtool.evaluation.scoring import RealFeatures, trained_features, warn_of_small_sets
from gmtool.progress import Progress
from gmtool.stages.sweep.plan import SweepPlan

OTHERS: tuple[Row, ...] = tuple(row for row in METRICS if row.needs in ("images", "distances"))
"""The metrics of the images themselves, and of the figures on several features."""


@dataclass(frozen=True, eq=False)
class Criterion:
    """An extractor, the metrics on it, and the features of the reference, None where it is statistics alone."""

    plan: FeaturePlan
    extractor: Extractor
    reference: Features | None


@dataclass(eq=False)
class Judge:
    """Scores samples as ``gmtool eval`` does.

    real: the metrics of real images in the samples' place, kept once they were found: by run, extractor, and number of
    samples.
    """

    plan: SweepPlan
    criteria: Sequence[Criterion]
    context: Context
    images: Mapping[str, Measurement]
    real: dict[tuple[Path, str, int], Mapping[str, Measurement]] = field(default_factory=dict)
    _real_features: dict[tuple[Path, str], RealFeatures] = field(default_factory=dict)

    @property
    def names(self) -> Mapping[str, str]:
        """Each extractor, exactly."""
        return {criterion.plan.name: criterion.extractor.name for criterion in self.criteria}

    def figures(self, run: RunFolder, images: np.ndarray, progress: Progress) -> tuple[Figure, ...]:
        """The figures of samples of a run, images uint8 (N, S, S, 3). Raises UserError unless features are finite."""
        batch = self.plan.config.batch_size
        figures: list[Figure] = []
        for criterion in self.criteria:
            generated = extract_features(
                criterion.extractor, array_batches(images, batch), len(images), "the samples", progress
            )
            expect_finite(generated, f"samples of {run.path}")
            real = self._features(run, criterion)
            here = measured(criterion.plan.rows, real.known(generated), self.context)
            there = self._in_place(run, criterion, real, len(images))
            figures += compared(here, there, progress, criterion.plan.name)
        known = Known(images=lambda: array_batches(images, batch), distances=distances(figures))
        there = measured(OTHERS, Known(distances=distances(figures, real=True)), self.context)
        here = measured(OTHERS, known, self.context)
        return (*figures, *compared(here, {**self.images, **there}, progress))

    def _features(self, run: RunFolder, criterion: Criterion) -> RealFeatures:
        key = (run.path, criterion.plan.name)
        if key not in self._real_features:
            trained = trained_features(self.plan.reference, criterion.extractor, run)
            self._real_features[key] = RealFeatures(
                criterion.plan, criterion.reference, run, trained, criterion.extractor
            )
        return self._real_features[key]

    def _in_place(
        self, run: RunFolder, criterion: Criterion, real: RealFeatures, count: int
    ) -> Mapping[str, Measurement]:
        key = (run.path, criterion.plan.name, count)
        if key not in self.real:
            known = real.in_place(count, self.plan.config.seed)
            self.real[key] = measured(criterion.plan.rows, known, self.context)
        return self.real[key]


def open_judge(plan: SweepPlan, side: int, progress: Progress) -> Judge:
    """Open the extractors and find the features of the reference, of images of ``side`` px, in every process."""
    world, config = plan.world, plan.config
    criteria = []
    for feature in plan.features.features:
        with world.first_before_others():
            extractor = (
                extractor_row(feature.name)
                .load()
                .open_extractor(config.extractor, plan.described, world.device, progress)
            )
        reference = None
        if len(plan.reference):
            cache = feature_cache(config.cache_size)
            real = reference_features(plan.reference, extractor, side, config.batch_size, world, progress, cache)
            reference = features_of(world.broadcast(real.tensors()))
        criteria.append(Criterion(feature, extractor, reference))
        least = min(len(point.drawing) for point in plan.grid.points)
        if reference is not None:
            warn_of_small_sets(Features(reference.vectors.new_empty(least, extractor.size)), reference, progress)
    context = Context(config.metrics, config.seed, world.device)
    pictures = some_images(plan.reference, side, config.batch_size)
    return Judge(plan, criteria, context, measured(OTHERS, Known(images=pictures), context))
