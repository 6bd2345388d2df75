"""Density and coverage by brute force, and of sets whose quality is known."""

import numpy as np
import pytest
import torch
from points import normal
from scipy.spatial.distance import cdist

from gmtool.evaluation.metric import Context, Pair
from gmtool.evaluation.metrics import MetricSettings
from gmtool.evaluation.metrics.density_coverage import density_coverage, measure

CPU = torch.device("cpu")


def values(generated: torch.Tensor, reference: torch.Tensor, **settings: int) -> tuple[float, float]:
    density, coverage = density_coverage(generated, reference, CPU, **settings)
    return density.value, coverage.value


@pytest.mark.parametrize("neighbours", [1, 5])
def test_both_by_brute_force(neighbours):
    generated, reference = normal(50, 3, 1, scale=1.3), normal(70, 3, 2)
    between, inside = (cdist(features.numpy(), reference.numpy()) for features in (reference, generated))
    hits = inside <= np.sort(between, axis=1)[:, neighbours]
    density, coverage = values(generated, reference, neighbours=neighbours, rows_at_once=13)
    assert density == pytest.approx(hits.sum() / (neighbours * 50))
    assert coverage == pytest.approx(hits.any(0).mean())


def test_equal_distributions_have_density_one_and_nearly_full_coverage():
    """Of equally many samples none is among a point's k nearest others with probability 2^-k, nearly."""
    density, coverage = values(normal(2000, 3, 3), normal(2000, 3, 4))
    assert density == pytest.approx(1, abs=0.05)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.02)


def test_no_more_images_are_read_than_there_are_real_ones():
    """Else many samples would cover everything, however few of them a mode has."""
    context = Context(MetricSettings(), 0, CPU)
    density, coverage = measure(Pair(normal(8000, 3, 3), normal(1000, 3, 4)), context)
    assert {(known.images, known.reference_images) for known in (density, coverage)} == {(1000, 1000)}
    assert coverage.value == pytest.approx(1 - 2**-5, abs=0.02)
    assert {known.images for known in measure(Pair(normal(30, 3, 3), normal(50, 3, 4)), context)} == {30}


@pytest.mark.parametrize(("generated", "real"), [(500, 1000), (2000, 1000)])
def test_coverage_of_equal_distributions_depends_on_both_numbers(generated, real):
    coverage = np.mean([values(normal(generated, 2, seed), normal(real, 2, seed + 9))[1] for seed in range(4)])
    assert coverage == pytest.approx(1 - (real / (real + generated)) ** 5, abs=0.02)


def test_the_same_set_is_covered_and_a_distant_one_is_not():
    points = normal(60, 4, 5)
    assert values(points, points)[1] == 1
    assert values(points, points + 100) == (0, 0)


def test_collapse_costs_coverage_and_an_outlier_costs_nothing():
    reference, generated = normal(400, 4, 6), normal(400, 4, 7)
    assert values(generated[:1].repeat(400, 1), reference)[1] < 0.1
    far = torch.cat([reference[:-1], torch.full((1, 4), 30.0)])  # whose ball holds everything
    for one, other in zip(values(generated, far), values(generated, reference), strict=True):
        assert one == pytest.approx(other, abs=0.25)


def test_a_tiny_set_uses_the_neighbours_it_has():
    density, coverage = values(normal(3, 2, 8), normal(2, 2, 9))
    assert density >= 0 and 0 <= coverage <= 1
