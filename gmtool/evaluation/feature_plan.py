"""Which features samples are compared by, and which metrics on them the reference allows; nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gmtool.distributed import World
from gmtool.errors import MachineError, UserError
from gmtool.evaluation.array_reference import ArrayReference
from gmtool.evaluation.extractors import Described, ExtractorSettings, choose_together, extractor_row
from gmtool.evaluation.features import FeatureStatistics
from gmtool.evaluation.library import torch_fidelity_fault
from gmtool.evaluation.metrics import METRICS, Row, label
from gmtool.evaluation.metrics.frechet_distance import covariance_root
from gmtool.evaluation.references import Reference
from gmtool.forecast import Choice
from gmtool.progress import Progress

SPATIAL_SIZE = 2023
"""Numbers of the features of sFID."""
LIKELY_SIZE = 1024
"""Numbers of a feature vector, where only weights tell that are not here: those of the larger ViTs."""


ON_FEATURES = ("statistics", "spatial", "features", "training", "logits")
"""Needs of metrics that an extractor's features meet."""


@dataclass(frozen=True, eq=False)
class FeaturePlan:
    """One extractor: which, and why; D of its vectors, None while its weights are not here; the metrics on it.

    statistics, spatial: those in the reference that are of its features.
    """

    choice: Choice
    size: int | None
    rows: tuple[Row, ...]
    statistics: FeatureStatistics | None
    spatial: FeatureStatistics | None

    @property
    def name(self) -> str:
        """The extractor's name."""
        return self.choice.value

    def memory(self, count: int, real: int, subsets: bool) -> int:
        """About the bytes that the features of ``count`` images and ``real`` ones take.

        subsets: whether metrics of subsets are computed too.
        """
        size, row = self.size or LIKELY_SIZE, extractor_row(self.name)
        numbers = size + (SPATIAL_SIZE + row.logits if row.classifies else 0)
        # features, the real ones once more in pairs, the generated ones in subsets, and a few covariances
        images = count * (2 if subsets else 1) + 2 * real
        return 4 * numbers * images + 8 * 8 * size**2

    def computed(self, with_images: bool, on_training_images: bool) -> list[Row]:
        """The metrics that a reference allows.

        with_images: whether it holds images, not statistics alone. on_training_images: whether the run was trained
        on some of these.
        """
        allowed = {
            "statistics": with_images or self.statistics is not None,
            "spatial": with_images or self.spatial is not None,
            "features": with_images,
            "training": with_images and on_training_images,
            "logits": True,
        }
        return [row for row in self.rows if allowed[row.needs]]


@dataclass(frozen=True, eq=False)
class PlannedFeatures:
    """The extractors that are used. left_out: a line on each thing asked for that cannot be had."""

    features: tuple[FeaturePlan, ...]
    left_out: tuple[str, ...]


def plan_features(
    settings: ExtractorSettings,
    described: Described | None,
    reference: Reference,
    progress: Progress,
    world: World,
    fetch: bool = True,
    refused: Mapping[str, str] | None = None,
) -> PlannedFeatures:
    """Choose the extractors, and the metrics on each, in all processes together.

    described: the tokenizer of the run's latents. fetch: whether missing weights are downloaded. refused: extractors
    that the images do not allow, and why. Raises UserError for a reference that holds nothing to compare with,
    MachineError when no extractor that was asked for can be had.
    """
    chosen = choose_together(settings, progress, world, fetch, refused)
    own = torch_fidelity_fault()
    fault = world.tell(own)
    if own is not None and fault is None:
        raise MachineError(own)
    features = tuple(_features(choice, settings, described, reference, fault is None) for choice in chosen.choices)
    if not len(reference) and not any(plan.statistics or plan.spatial for plan in features):
        raise _no_statistics(reference, features)
    lost = [] if fault is None else [f"left out: {_library_metrics(features)}, because {fault}"]
    return PlannedFeatures(features, (*(f"left out: {line}" for line in chosen.missing), *lost))


def _features(
    choice: Choice, settings: ExtractorSettings, described: Described | None, reference: Reference, library: bool
) -> FeaturePlan:
    row = extractor_row(choice.value)
    size = row.load().feature_size(settings, described)
    rows = [metrics for metrics in METRICS if metrics.needs in ON_FEATURES and (library or not metrics.library)]
    rows = [
        metrics
        for metrics in rows
        if row.allows(metrics) and (metrics.needs not in ("logits", "spatial") or row.classifies)
    ]
    statistics = reference.statistics if isinstance(reference, ArrayReference) else None
    spatial = reference.spatial if isinstance(reference, ArrayReference) and row.classifies else None
    return FeaturePlan(
        choice,
        size,
        tuple(rows),
        _fitting(statistics, size, reference, "sigma"),
        _fitting(spatial, SPATIAL_SIZE, reference, "sigma_s"),
    )


def _library_metrics(features: Sequence[FeaturePlan]) -> str:
    """The metrics on these features that need torch-fidelity."""
    labels = [
        label(metric, plan.name)
        for plan in features
        for row in METRICS
        if row.library
        and extractor_row(plan.name).allows(row)
        and (row.needs != "logits" or extractor_row(plan.name).classifies)
        for metric in row.metrics
    ]
    return ", ".join(labels)


def _fitting(
    statistics: FeatureStatistics | None, size: int | None, reference: Reference, name: str
) -> FeatureStatistics | None:
    """The statistics, where they are of features of ``size`` numbers. Raises UserError where they are no covariance."""
    if statistics is None or len(statistics.mean) != size:
        return None
    try:
        covariance_root(statistics.covariance)
    except ValueError as error:
        raise UserError(f"--reference {reference.path}: {name} is no covariance: {error}") from error
    return statistics


def _no_statistics(reference: Reference, features: Sequence[FeaturePlan]) -> UserError:
    """The error of a reference that holds nothing to compare these features with."""
    statistics = reference.statistics if isinstance(reference, ArrayReference) else None
    size = 0 if statistics is None else len(statistics.mean)
    names = [plan.name for plan in features]
    wanted = " and ".join(f"{plan.name} have {plan.size}" for plan in features)
    other = "--features inception, or " if size == 2048 and "inception" not in names else ""
    return UserError(
        f"{reference.path} holds statistics of {size} numbers, but the features of {wanted}: give {other}another "
        "--reference"
    )
