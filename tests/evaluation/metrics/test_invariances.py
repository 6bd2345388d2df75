"""What holds for every distance of two sets of features, whatever its formula."""

import pytest
import torch
from points import normal

from gmtool.evaluation.comparison import known_from_features, measured
from gmtool.evaluation.features import Features
from gmtool.evaluation.metric import Context
from gmtool.evaluation.metrics import METRICS, MetricSettings

CONTEXT = Context(MetricSettings(), 0, torch.device("cpu"))
DISTANCES = ("frechet_distance", "spatial_frechet_distance", "kernel_distance", "mind", "cmmd")
SHARES = ("precision", "recall", "coverage")
ROWS = [row for row in METRICS if any(metric.name in (*DISTANCES, *SHARES) for metric in row.metrics)]


def features(seed: int, shift: float = 0.0) -> Features:
    return Features(normal(60, 6, seed, shift), None, normal(60, 5, seed + 100, shift))


def values(generated: Features, reference: Features) -> dict[str, float]:
    figures = measured(ROWS, known_from_features(generated, reference), CONTEXT)
    return {name: figure.value for name, figure in figures.items()}


def test_the_same_set_is_at_no_distance_and_wholly_covered() -> None:
    figures = values(features(0), features(0))
    scale = values(features(0), features(1, shift=1.0))
    for name in DISTANCES:
        # unbiased, the kernel distance of a set to itself lies below 0: the pairs of an image with itself count once
        bound = 0.0 if name == "kernel_distance" else 1e-6 * scale[name]
        assert figures[name] <= bound, name
    for name in SHARES:
        assert figures[name] == 1


def test_the_order_of_the_images_changes_nothing() -> None:
    generated, reference = features(0), features(1, shift=0.3)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    permuted = values(generated.rows(order), reference.rows(order.flip(0)))
    for name, value in values(generated, reference).items():
        assert permuted[name] == pytest.approx(value, rel=1e-4), name


def test_what_is_shifted_farther_is_farther() -> None:
    by_shift = [values(features(0, shift), features(1)) for shift in (0.0, 0.7, 2.0)]
    for name in DISTANCES:
        assert by_shift[0][name] < by_shift[1][name] < by_shift[2][name], name
    for name in SHARES:
        assert by_shift[0][name] > by_shift[2][name], name
