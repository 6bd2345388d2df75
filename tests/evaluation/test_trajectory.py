"""Length, straightness and Lipschitz constant of fields that are known; distances of sets that are known."""

import math

import pytest
import torch

from gmtool.evaluation.trajectory import (
    lipschitz,
    mean_lipschitz,
    sliced_distance,
    trace,
    transport_distance,
)
from gmtool.flow.path import per_sample
from gmtool.flow.times import full_grid
from gmtool.nn.architecture import Conditions
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.streams import generator

TURN = 1.5
"""Radians that the rotation turns by from t = 1 to t = 0."""


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator("test", seed), dtype=torch.float64)


def rotation(x, t):
    return TURN * torch.stack([-x[:, 1], x[:, 0]], 1)


def test_a_constant_field_is_straight():
    speed = normal(3, 2, 2)
    path = trace(lambda x, t: speed.expand_as(x), normal(4, 3, 2, 2), full_grid(5, 2.0))
    torch.testing.assert_close(path.length(), speed.norm().expand(4))
    torch.testing.assert_close(path.straightness(), torch.zeros(4, dtype=torch.float64), atol=1e-20, rtol=0)
    torch.testing.assert_close(path.points[-1], path.points[0] - speed)


def test_a_rotation_goes_along_circles():
    """Length is the arc; int |(x_1 - x_0) - u|^2 = int |u|^2 - |x_1 - x_0|^2, with the chord 2 r sin(angle / 2)."""
    start = normal(6, 2, 1, 1)
    path = trace(rotation, start, full_grid(4000, 1.0))
    radius = start.flatten(1).norm(dim=1)
    torch.testing.assert_close(path.length(), TURN * radius, rtol=1e-3, atol=0)
    expected = radius.square() * (TURN**2 - (2 * math.sin(TURN / 2)) ** 2)
    torch.testing.assert_close(path.straightness(), expected, rtol=2e-3, atol=0)


def test_a_shifted_grid_measures_the_same_path():
    start = normal(3, 2, 1, 1)
    even, shifted = (trace(rotation, start, full_grid(4000, shift)) for shift in (1.0, 4.0))
    torch.testing.assert_close(even.length(), shifted.length(), rtol=2e-3, atol=0)
    torch.testing.assert_close(even.straightness(), shifted.straightness(), rtol=5e-3, atol=0)


@pytest.mark.slow
def test_lipschitz_of_a_linear_field_is_its_largest_singular_value():
    matrix = normal(12, 12)
    constant = lipschitz(
        lambda x, t: (per_sample(t, x).flatten(1) * x.flatten(1) @ matrix.T).view_as(x),
        normal(5, 3, 2, 2),
        torch.full((5,), 0.5, dtype=torch.float64),
        normal(5, 3, 2, 2, seed=1),
    )
    largest = 0.5 * torch.linalg.svdvals(matrix)[0]
    assert (constant <= largest * (1 + 1e-9)).all() and (constant > 0.95 * largest).all()


@pytest.mark.slow
def test_the_mean_lipschitz_constant_weighs_times_evenly_whatever_the_grid():
    """u = t x has constant t at time t: 1/2 on average, up to the grid, whose steps are short where it is dense."""
    for shift in (1.0, 5.0):
        path = trace(lambda x, t: per_sample(t, x) * x, normal(20_000, 1, 1, 1), full_grid(400, shift))
        constant = mean_lipschitz(lambda x, t: per_sample(t, x) * x, path, generator("times"))
        assert float(constant.mean()) == pytest.approx(0.5, abs=0.012)


def test_lipschitz_of_a_network_with_attention_is_that_of_its_whole_jacobian():
    network = build_network(DiTArchitecture((2, 2, 2), 2, 16, 2), seed=0).requires_grad_(False)
    stream = generator("weights")
    for parameter in network.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=stream))
    point, t = normal(1, 2, 2, 2).float(), torch.tensor([0.3])

    def field(x, t):
        return network(x, t, Conditions())

    whole = torch.func.jacrev(lambda x: field(x, t))(point).reshape(8, 8)
    constant = lipschitz(field, point, t, normal(1, 2, 2, 2, seed=1).float())
    assert float(constant) == pytest.approx(float(torch.linalg.svdvals(whole)[0]), rel=0.02)


def test_distances_of_a_shifted_and_shuffled_copy():
    points, shift = normal(60, 2, 3), torch.full((2, 3), 0.5, dtype=torch.float64)
    moved = (points + shift)[torch.randperm(60, generator=generator("shuffle"))]
    assert transport_distance(points, moved) == pytest.approx(float(shift.square().sum()))
    assert (
        transport_distance(points, points.flip(0)) == 0 and sliced_distance(points, points.flip(0), generator(0)) == 0
    )
    # a direction sees (direction . shift)^2, the squared shift over the dimension on average
    assert sliced_distance(points, moved, generator(0)) == pytest.approx(float(shift.square().sum()) / 6, rel=0.2)


def test_in_one_dimension_both_distances_compare_order_statistics():
    first, second = normal(500, 1), 2 * normal(500, 1, seed=1) + 1
    expected = float((first.sort(dim=0).values - second.sort(dim=0).values).square().mean())
    assert transport_distance(first, second) == pytest.approx(expected)
    assert sliced_distance(first, second, generator(0)) == pytest.approx(expected)


def test_the_transport_distance_is_that_of_pot():
    ot = pytest.importorskip("ot")
    first, second = normal(80, 5), 1.3 * normal(80, 5, seed=1)
    expected = ot.emd2([], [], ot.dist(first.numpy(), second.numpy(), "sqeuclidean"))
    assert transport_distance(first, second) == pytest.approx(expected)


def test_sets_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="equally many"):
        transport_distance(normal(3, 2), normal(4, 2))
