"""The metrics of generated images beside those of real images in their place: the floor of a perfect generator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gmtool.evaluation.features import Features, FeatureStatistics, feature_statistics
from gmtool.evaluation.metric import Context, Known, Pair
from gmtool.evaluation.metrics import Row
from gmtool.evaluation.report import Figure, Measurement
from gmtool.progress import Progress
from gmtool.streams import generator


def real_pair(reference: Features, other: Features | None, count: int, seed: int) -> Pair[Features] | None:
    """Two disjoint sets of real images, sized as ``count`` generated images and their reference as nearly as can be.

    other: at most ``count`` real images that are not in the reference, when there are any; the pair is then these and
    the whole reference. Without them the reference is split at random: ``count`` and the rest when
    it holds at least twice ``count``, else halves. None when a side would have fewer than 2 images.
    """
    pair = None if other is None else Pair(other, reference)
    if pair is None:
        order = torch.randperm(len(reference), generator=generator(seed, "real pair"))
        size = count if len(reference) >= 2 * count else len(reference) // 2
        pair = Pair(reference.rows(order[:size]), reference.rows(order[size:]))
    return pair if min(len(pair.images), len(pair.reference)) >= 2 else None


def known_from_features(
    images: Features,
    reference: Features | None,
    statistics: FeatureStatistics | None = None,
    spatial: FeatureStatistics | None = None,
    moments: bool = True,
) -> Known:
    """The inputs of the metrics, from the features of some images and of their reference.

    statistics, spatial: of a larger set that the reference was drawn from, for the metrics of statistics. moments:
    whether the means and covariances are needed.
    """
    known = Known(
        features=None if reference is None else Pair(images.vectors, reference.vectors),
        logits=images.logits,
    )
    if not moments:
        return known
    return replace(
        known,
        statistics=_statistics(images.vectors, None if reference is None else reference.vectors, statistics),
        spatial=_statistics(images.spatial, None if reference is None else reference.spatial, spatial),
    )


def _statistics(
    images: Tensor | None, reference: Tensor | None, known: FeatureStatistics | None
) -> Pair[FeatureStatistics] | None:
    if images is None or (known is None and reference is None):
        return None
    other = feature_statistics(reference) if known is None and reference is not None else known
    return None if other is None else Pair(feature_statistics(images), other)


def figures_of(
    rows: Sequence[Row], generated: Known, real: Known, context: Context, progress: Progress, features: str = ""
) -> tuple[Figure, ...]:
    """The metrics of ``rows`` whose inputs are available, in their order; ``features`` is the extractor they are of.

    real: what is known of real images in the place of the generated ones; where that does not suffice for a metric, it
    has no such value. A metric that comes out infinite or as no number is left out, with a note.
    """
    usable = [row for row in rows if getattr(generated, row.needs) is not None and row.defined_on(features)]
    counted = [row for row in usable if row.needs != "paths"]  # which tell their own progress
    figures: dict[Row, tuple[Figure, ...]] = {}

    def compare(row: Row) -> tuple[Figure, ...]:
        return compared(measured([row], generated, context), measured([row], real, context), progress, features)

    progress.begin(f"metrics of {features or 'the images'}", len(counted), "metrics")
    try:
        for row in counted:
            figures[row] = compare(row)
            progress.advance()
    finally:
        progress.end()
    figures |= {row: compare(row) for row in usable if row not in figures}
    return tuple(figure for row in usable for figure in figures[row])


def measured(rows: Sequence[Row], known: Known, context: Context) -> dict[str, Measurement]:
    """The metrics of ``rows`` whose inputs are available, by name, in their order. Raises what the metrics do."""
    return {
        metric.name: measurement
        for row in rows
        if (inputs := getattr(known, row.needs)) is not None
        for metric, measurement in zip(row.metrics, row.load()(inputs, context), strict=True)
    }


def compared(
    generated: Mapping[str, Measurement], real: Mapping[str, Measurement], progress: Progress, features: str = ""
) -> tuple[Figure, ...]:
    """Metrics of generated images beside the same of real ones; those that are not finite are left out, with a note."""
    figures = (Figure(name, measurement, real.get(name), features) for name, measurement in generated.items())
    return tuple(figure for figure in figures if _finite(figure, progress))


def _finite(figure: Figure, progress: Progress) -> bool:
    values = [measurement.value for measurement in (figure.generated, figure.real) if measurement is not None]
    good = all(map(math.isfinite, values))
    if not good:
        progress.note(f"{figure.metric} is left out: it came out as {', '.join(map(str, values))}")
    return good
