"""MIND against its definition, closed forms and its symmetries."""

import pytest
import torch
from points import normal

from gmtool.evaluation.metric import Context, Pair
from gmtool.evaluation.metrics import MetricSettings
from gmtool.evaluation.metrics.mind import measure, mind
from gmtool.streams import generator


def test_it_is_a_mean_of_squared_distances_of_order_statistics():
    first, second = normal(40, 6, 1), normal(40, 6, 2, shift=0.4)
    drawn = torch.randn(6, 50, generator=generator(3, "directions")).double()
    total = 0.0
    for column in drawn.T:
        unit = column / column.norm()
        total += float(((first.double() @ unit).sort().values - (second.double() @ unit).sort().values).square().mean())
    assert mind(first, second, 3, directions=50) == pytest.approx(3 * 6 * total / 50, rel=1e-10)


@pytest.mark.slow
def test_a_shift_adds_three_times_its_squared_length():
    points, shift = normal(500, 8, 4), torch.linspace(-1, 1, 8)
    expected = 3 * float(shift.square().sum())
    assert mind(points, points + shift, 0, directions=20_000) == pytest.approx(expected, rel=0.03)


def test_the_same_set_is_at_no_distance_in_any_order_and_both_ways_are_equal():
    first, second = normal(60, 5, 5), normal(60, 5, 6, scale=1.5)
    assert mind(first, first.flip(0), 0) == pytest.approx(0, abs=1e-12)
    assert mind(first, second, 0) == pytest.approx(mind(second, first, 0), rel=1e-12)
    assert 0 < mind(first, first * 1.1, 0) < mind(first, first * 1.3, 0)


def test_sides_of_different_sizes_are_thinned_to_one():
    context = Context(MetricSettings(), 0, torch.device("cpu"))
    for images, size in ((10_000, 30), (20, 20)):
        (measured,) = measure(Pair(normal(50, 3, 7), normal(30, 3, 8)), context, images=images)
        assert (measured.images, measured.reference_images) == (size, size) and measured.value > 0
