from dataclasses import fields
from importlib import import_module

import numpy as np
import pytest
import torch

from gmtool.evaluation.comparison import figures_of, known_from_features, real_pair
from gmtool.evaluation.features import Features, FeatureStatistics, feature_statistics
from gmtool.evaluation.metric import Context, Known, Pair, bounded
from gmtool.evaluation.metrics import METRICS, Metric, MetricSettings, Row
from gmtool.evaluation.report import Figure, Measurement
from gmtool.progress import Progress

CONTEXT = Context(MetricSettings(), 0, torch.device("cpu"))


def numbered(count: int, first: int = 0) -> Features:
    """Image i has the feature i."""
    return Features(torch.arange(first, first + count).float()[:, None])


def normal(count: int, seed: int, logits: bool = False) -> Features:
    random = torch.Generator().manual_seed(seed)
    return Features(
        torch.randn(count, 4, generator=random), torch.randn(count, 6, generator=random) if logits else None
    )


@pytest.mark.parametrize(
    ("reference", "samples", "sizes"), [(100, 30, (30, 70)), (100, 50, (50, 50)), (101, 90, (50, 51)), (4, 9, (2, 2))]
)
def test_a_split_reference_is_disjoint_and_sized_as_the_samples(reference, samples, sizes):
    pair = real_pair(numbered(reference), None, samples, seed=0)
    assert (len(pair.images), len(pair.reference)) == sizes
    together = torch.cat([pair.images.vectors, pair.reference.vectors]).flatten().sort().values
    assert torch.equal(together, torch.arange(reference).float())


def test_the_split_depends_on_the_seed_alone():
    first, again, other = (real_pair(numbered(50), None, 10, seed).images.vectors for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_other_real_images_stand_in_for_the_samples():
    pair = real_pair(numbered(20), numbered(8, first=100), 8, seed=0)
    assert pair.images.vectors.min() == 100 and len(pair.reference) == 20


def test_too_few_real_images_give_no_pair():
    assert real_pair(numbered(3), None, 10, seed=0) is None


def figures(generated: Known, real: Known | None = None, rows: tuple[Row, ...] = METRICS) -> tuple[Figure, ...]:
    return figures_of(rows, generated, real or Known(), CONTEXT, Progress())


def both(pair: Pair[Features]) -> Known:
    return known_from_features(pair.images, pair.reference)


def test_all_metrics_stand_beside_their_real_values():
    reference = normal(80, 0, logits=True)
    compared = figures(
        known_from_features(normal(30, 1, logits=True), reference), both(real_pair(reference, None, 30, 0))
    )
    assert [figure.metric for figure in compared] == [
        "frechet_distance", "inception_score", "kernel_distance", "precision", "recall", "density", "coverage", "mind",
    ]  # fmt: skip
    for figure in compared:
        sizes = {"inception_score": (None, None), "mind": (30, 30)}.get(figure.metric, (80, 50))
        assert (figure.generated.images, figure.generated.reference_images) == (30, sizes[0])
        assert (figure.real.images, figure.real.reference_images) == (30, sizes[1])
        assert np.isfinite(figure.generated.value) and np.isfinite(figure.real.value)


def test_statistics_alone_give_the_frechet_distance_alone():
    reference = normal(50, 2)
    feature_moments = feature_statistics(reference.vectors)
    statistics = FeatureStatistics(feature_moments.mean, feature_moments.covariance)
    (figure,) = figures(known_from_features(normal(30, 3), None, statistics))
    expected = figures(known_from_features(normal(30, 3), reference))[0]
    assert (figure.metric, figure.real, figure.generated.reference_images) == ("frechet_distance", None, None)
    assert figure.generated.value == pytest.approx(expected.generated.value)


def test_statistics_of_a_larger_set_replace_those_of_its_sample():
    reference, wide = normal(50, 2), FeatureStatistics(np.full(4, 10.0), np.eye(4))
    compared = figures(known_from_features(normal(30, 3), reference, wide))
    assert compared[0].generated.value == pytest.approx(400, rel=0.1)
    assert compared[0].metric == "frechet_distance" and len(compared) > 4


@pytest.mark.parametrize(
    ("module", "bounds", "images"),
    [
        ("kernel_distance", {"images": 20, "references": 25}, 20),
        ("precision_recall", {"images": 20, "references": 25}, 20),
        ("density_coverage", {"references": 25}, 25),
    ],
)
def test_metrics_of_pairs_look_at_a_bounded_number_of_images(module, bounds, images):
    measure = import_module(f"gmtool.evaluation.metrics.{module}").measure
    known = Pair(normal(30, 1).vectors, normal(80, 0).vectors)
    for measurement in measure(known, CONTEXT, **bounds):
        assert (measurement.images, measurement.reference_images) == (images, 25)
    few = bounded(known, 0, 20, 25)
    assert len({tuple(row) for row in few.images.tolist()} & {tuple(row) for row in known.images.tolist()}) == 20
    assert torch.equal(bounded(known, 0, 30, 80).images, known.images)


def test_a_metric_is_a_file_and_a_row():
    """The whole of what a new one takes: nothing else knows its name."""
    row = Row(f"{__name__}:mean_gap", "features", (Metric("mean_gap", "gap of means", "lower"),))
    (compared,) = figures(
        known_from_features(numbered(4, first=10), numbered(4)), both(Pair(numbered(4), numbered(4))), (row,)
    )
    assert (compared.metric, compared.generated.value, compared.real.value) == ("mean_gap", 10, 0)


def mean_gap(known: Pair[torch.Tensor], _: Context) -> tuple[Measurement]:
    gap = float((known.images.mean(0) - known.reference.mean(0)).norm())
    return (Measurement(gap, None, len(known.images), len(known.reference)),)


def test_a_figure_that_is_no_number_is_left_out_and_said():
    notes: list[str] = []
    progress = Progress()
    progress.note = notes.append
    row = Row(f"{__name__}:mean_gap", "features", (Metric("mean_gap", "gap of means", "lower"),))
    lost = Features(torch.full((3, 1), float("inf")))
    assert figures_of((row,), known_from_features(numbered(3), lost), Known(), CONTEXT, progress) == ()
    assert notes == ["mean_gap is left out: it came out as inf"]


def test_every_row_of_the_table_can_be_loaded_and_no_name_is_used_twice():
    names = [metric.name for row in METRICS for metric in row.metrics]
    assert len(set(names)) == len(names)
    for row in METRICS:
        assert callable(row.load()) and row.needs in {field.name for field in fields(Known)}
