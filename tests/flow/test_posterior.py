import itertools

import pytest
import torch
from gmtool.flow.solvers.mixture import mean_at
from gmtool.flow.solvers.substeps import Axes, Span, coordinates_of, follow
from toys import random_mixture, random_point

from gmtool.flow.path import mean_velocity
from gmtool.flow.times import expand, time_grid
from gmtool.mixture.gaussian_mixture import GaussianFactor, GaussianMixture, rows


def directly(mixture, x, points):
    """The definition: at every sub-step the mixture is multiplied by the bridge's factor in all its channels."""
    x_t, t = x, expand(points[0], x)
    mean = mixture.mean()
    for start, stop in itertools.pairwise(points):
        now = expand(start, x)
        if start < points[0]:
            mean = mean_at(mixture, x_t, t, x, now)
        x = x + mean_velocity(x, now, mean) * float(stop - start)
    return x


def some_factor(seed, like):
    """A factor as guidance and second order make them, centred anywhere."""
    shift, center = random_point(seed, like), random_point(seed + 1, like)
    precision = torch.rand(len(shift), 1, *[1] * (shift.dim() - 2), dtype=shift.dtype)
    return GaussianFactor(precision, shift, center)


def grids(substeps):
    """A first step from the source, one in the middle, and a last one onto the data."""
    whole = time_grid(3 * substeps, 2.0)
    return [whole[i * substeps : (i + 1) * substeps + 1] for i in range(3)]


@pytest.mark.parametrize("spatial", [(), (5,), (2, 3)])
@pytest.mark.parametrize(("components", "channels"), [(1, 3), (4, 2), (3, 40)])
@pytest.mark.parametrize("substeps", [1, 2, 9])
def test_coefficients_follow_the_direct_formula(components, channels, spatial, substeps):
    mixture = random_mixture(0, components=components, channels=channels, spatial=spatial)
    x = random_point(1, mixture)
    for points in grids(substeps):
        torch.testing.assert_close(follow(mixture, x, points.tolist()).x, directly(mixture, x, points))


@pytest.mark.parametrize(("components", "channels"), [(5, 2), (4, 30)])
def test_a_factor_and_the_mean_ahead_follow_the_direct_formula(components, channels):
    """As if the mixture had been multiplied first; what is remembered is the other product, seen at the end."""
    mixture = random_mixture(10, components=components, channels=channels)
    x, factor, remembered = random_point(11, mixture), some_factor(12, mixture), some_factor(14, mixture)
    for points, substeps in ((grids(n)[i], n) for n in (1, 7) for i in (0, 1)):
        found = follow(mixture, x, points.tolist(), factor, remembered, look_ahead=True)
        torch.testing.assert_close(found.x, directly(mixture.times(factor), x, points))
        for kept, other in ((remembered, mixture.times(remembered)), (None, mixture)):
            found = follow(mixture, x, points.tolist(), factor, kept, look_ahead=True)
            start, stop = expand(points[0], x), expand(points[substeps], x)
            torch.testing.assert_close(found.mean, mean_at(other, x, start, found.x, stop))
    assert follow(mixture, x, grids(3)[2].tolist(), factor).mean is None


@pytest.mark.parametrize(("components", "channels", "kind"), [(64, 2, Axes), (8, 4, Axes), (8, 768, Span)])
def test_the_coordinates_are_the_cheaper_ones(components, channels, kind):
    mixture = random_mixture(16, components=components, channels=channels)
    vector = random_point(17, mixture).flatten(2).movedim(1, -1).unsqueeze(2)
    assert isinstance(coordinates_of(rows(mixture.means), [vector]), kind)


@pytest.mark.parametrize("each", [(4, 1, 1), (1, 2, 2), (4, 2, 2)], ids=["component", "position", "both"])
def test_variances_of_components_and_positions_follow_the_direct_formula(each):
    mixture = random_mixture(2)
    components, *spatial = each
    varied = torch.rand(2, components, 1, *spatial, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixture = GaussianMixture(mixture.means, mixture.log_weights, varied + 0.1)
    x = random_point(3, mixture)
    for points in grids(6):
        torch.testing.assert_close(follow(mixture, x, points.tolist()).x, directly(mixture, x, points))


def strained(name, channels):
    """Mixtures that are hard for float32, as float64."""
    easy = random_mixture(4, components=5, channels=channels)
    return {
        "plain": easy,
        "nearly equal means": GaussianMixture(3 + 1e-3 * easy.means, easy.log_weights, 1e-6 * easy.variance),
        "equal means": GaussianMixture(easy.means[:, :1].expand_as(easy.means), easy.log_weights, easy.variance),
        "tiny variance": GaussianMixture(0.05 * easy.means, easy.log_weights, 1e-10 * easy.variance),
        "no variance": GaussianMixture(0.05 * easy.means, easy.log_weights, 0 * easy.variance),
        "far means": GaussianMixture(100 * easy.means, easy.log_weights, easy.variance),
        "a weight of zero": GaussianMixture(
            easy.means,
            torch.log_softmax(easy.log_weights.masked_fill(torch.arange(5).reshape(1, 5, 1, 1, 1) == 0, -torch.inf), 1),
            easy.variance,
        ),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["plain", "nearly equal means", "equal means", "tiny variance", "no variance", "far means", "a weight of zero"],
)
@pytest.mark.parametrize("channels", [2, 64])
def test_float32_is_exact_to_rounding(name, channels):
    exact = strained(name, channels)
    single = GaussianMixture(exact.means.float(), exact.log_weights.float(), exact.variance.float())
    rounded = GaussianMixture(single.means.double(), single.log_weights.double(), single.variance.double())
    x = random_point(5, exact).float()
    size = exact.means.abs().max().item()
    for points in grids(16):
        found = follow(single, x, points.tolist()).x
        truth = directly(rounded, x.double(), points)
        torch.testing.assert_close(found.double(), truth, atol=2e-6 * max(1, size), rtol=2e-6)


def test_the_memory_layout_of_the_means_does_not_matter():
    mixture = random_mixture(6)
    inner = mixture.means.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    other = GaussianMixture(inner, mixture.log_weights, mixture.variance)
    x, points = random_point(7, mixture), grids(5)[1].tolist()
    torch.testing.assert_close(follow(other, x, points).x, follow(mixture, x, points).x)


def test_nothing_is_written_into_the_arguments():
    mixture = random_mixture(8)
    x = random_point(9, mixture)
    before = [each.clone() for each in (x, mixture.means, mixture.log_weights, mixture.variance)]
    follow(mixture, x, grids(4)[0].tolist())
    for each, old in zip((x, mixture.means, mixture.log_weights, mixture.variance), before, strict=True):
        assert torch.equal(each, old)
