import math

import pytest
import torch
from torch import Tensor

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.mlp import PointNetwork, octaves


def point_network(*sizes: int, frequencies: int = 2, modes: int = 0) -> PointNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PointNetwork(*sizes, frequencies=frequencies, modes=modes)


def test_octaves_hold_the_numbers_and_their_sines_and_cosines():
    values = torch.tensor([[0.5, -2.0]])
    encoded = octaves(values)
    assert encoded.shape == (1, 34)
    torch.testing.assert_close(encoded[:, :2], values)
    torch.testing.assert_close(encoded[0, 2 + 3], torch.tensor(0.5 * math.pi / 8 * 8).sin())
    torch.testing.assert_close(encoded[0, 2 + 16 + 8], torch.tensor(-2.0 * math.pi / 8).cos())


def draw(seed: int, count: int = 256) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 1, 1, generator=stream), torch.rand(count, generator=stream)


def fit(network: PointNetwork, loss_of, steps: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(step).backward()
        optimizer.step()


@pytest.mark.slow
def test_a_velocity_of_point_and_time_is_learned():
    """From zero, u = (t x_2, x_1 - t) to a twentieth of its standard deviation."""

    def target(x: Tensor, t: Tensor) -> Tensor:
        first, second = x.flatten(1).T
        return torch.stack([t * second, first - t], 1).reshape(x.shape)

    network, (x, t) = point_network(2, 32, 2, 0), draw(1000)
    assert torch.equal(network(x, t), torch.zeros_like(x))
    fit(network, lambda step: (network(*draw(step)) - target(*draw(step))).square().mean(), 300)
    assert (network(x, t) - target(x, t)).square().mean().sqrt() < 0.05 * target(x, t).std()


def test_a_mixture_of_points_is_learned():
    """Targets are at (x_1, 1) or, three times in four, at (x_1, -1), with a spread of 0.1: so are the components."""

    def targets(step: int) -> tuple[Tensor, Tensor, Tensor]:
        x, t = draw(step)
        stream = torch.Generator().manual_seed(step)
        side = torch.where(torch.rand(len(x), generator=stream) < 0.75, -1.0, 1.0)
        centres = torch.stack([x[:, 0, 0, 0], side], 1)
        return x, t, (centres + 0.1 * torch.randn(centres.shape, generator=stream)).reshape(x.shape)

    def loss(step: int) -> Tensor:
        x, t, target = targets(step)
        return -network(x, t).log_density(target).mean()

    network = point_network(2, 32, 2, 2)
    fit(network, loss, 200)
    x, t = draw(1000)
    mixture = network(x, t)
    order = mixture.means[:, :, 1:].argsort(1)
    weights = mixture.log_weights.exp().gather(1, order)
    means = mixture.means.gather(1, order.expand_as(mixture.means)).flatten(2)
    expected = torch.stack([x[:, :1, 0, 0].expand(-1, 2), torch.tensor([-1.0, 1.0]).expand(len(x), 2)], 2)
    assert (means - expected).square().mean().sqrt() < 0.1
    assert weights.flatten(1).mean(0).tolist() == pytest.approx([0.75, 0.25], abs=0.06)
    assert mixture.variance.sqrt().mean().item() == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize("modes", [0, 3])
def test_a_point_s_prediction_depends_on_its_own_point_time_and_mode_alone(modes):
    network = point_network(2, 16, 3, 4, modes=modes)
    x, t = draw(0, 6)
    labels = torch.arange(6) % 3 if modes else None

    def changed(x: Tensor, t: Tensor, labels: Tensor | None) -> list[bool]:
        mixture = network(x, t, labels)
        assert isinstance(mixture, GaussianMixture)
        return ((mixture.means - before.means).abs().flatten(1).amax(1) > 1e-5).tolist()

    before = network(x, t, labels)
    only = torch.arange(6) == 2
    one = [False, False, True, False, False, False]
    assert changed(torch.where(only[:, None, None, None], x + 0.3, x), t, labels) == one
    assert changed(x, torch.where(only, 1 - t, t), labels) == one
    if labels is not None:
        assert changed(x, t, torch.where(only, 0, labels)) == one
        with pytest.raises(ValueError, match="conditioned on modes: give their labels"):
            network(x, t)


def test_without_frequencies_the_network_sees_the_point_alone():
    assert point_network(10, 16, 2, 4, frequencies=0).from_x.in_features == 10
