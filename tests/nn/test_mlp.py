import math

import torch

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.mlp import PointNetwork, octaves


def test_octaves_hold_the_numbers_and_their_sines_and_cosines():
    values = torch.tensor([[0.5, -2.0]])
    found = octaves(values)
    assert found.shape == (1, 34)
    torch.testing.assert_close(found[:, :2], values)
    torch.testing.assert_close(found[0, 2 + 3], torch.tensor(0.5 * math.pi / 8 * 8).sin())
    torch.testing.assert_close(found[0, 2 + 16 + 8], torch.tensor(-2.0 * math.pi / 8).cos())


def test_a_velocity_or_a_mixture_of_points():
    x, t = torch.randn(5, 2, 1, 1), torch.rand(5)
    assert PointNetwork(2, 16, 3, 0)(x, t).shape == (5, 2, 1, 1)
    mixture = PointNetwork(2, 16, 3, 4)(x, t)
    assert isinstance(mixture, GaussianMixture)
    assert (mixture.means.shape, mixture.log_weights.shape, mixture.variance.shape) == (
        (5, 4, 2, 1, 1),
        (5, 4, 1, 1, 1),
        (5, 1, 1, 1, 1),
    )
    torch.testing.assert_close(mixture.log_weights.exp().sum(1), torch.ones(5, 1, 1, 1))


def test_points_and_times_reach_the_output():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PointNetwork(2, 16, 3, 4)
    x, t = torch.randn(5, 2, 1, 1), torch.rand(5)
    first = network(x, t).mean()
    assert (network(x + 0.3, t).mean() - first).abs().max() > 1e-4
    assert (network(x, 1 - t).mean() - first).abs().max() > 1e-4


def test_a_network_that_is_told_the_mode_predicts_by_it():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = PointNetwork(10, 16, 2, 4, frequencies=0, modes=3)
    x, t, modes = torch.randn(5, 10, 1, 1), torch.rand(5), torch.tensor([0, 1, 2, 0, 1])
    first = network(x, t, modes).mean()
    changed = (network(x, t, (modes + 1) % 3).mean() - first).abs().flatten(1).amax(1)
    assert (changed > 1e-6).all()
    assert network.from_x.in_features == 10
