"""Two forms of the posterior: the definition is the truth, the reduced one must be it on a few numbers per position."""

import itertools

import pytest
import torch
from toys import random_mixture, random_point

from gmtool.flow.guidance.probabilistic import guide
from gmtool.flow.posterior import Axes, DirectPosterior, Span, axes_of, reduced_posteriors, span_of, vectors_of
from gmtool.flow.solvers.second_order import Damping, second_order
from gmtool.flow.times import full_grid
from gmtool.mixture.gaussian_mixture import GaussianFactor, GaussianMixture, rows

FORMS = pytest.mark.parametrize("form", [axes_of, span_of])


def along(posterior, points):
    """The end of Euler's steps through the points, and the mean there unless it is the data, as tensors."""
    point = posterior.start
    for r, after in itertools.pairwise(points):
        point = after / r * point + (1 - after / r) * posterior.mean_at(point, r)
    return posterior.lift(points[-1], point, posterior.mean_at(point, points[-1]) if points[-1] > 0 else None)


def assert_same_way(reduced, direct, points, **tolerance):
    """The same end and the same mean there."""
    for mean, expected in zip(along(reduced, points), along(direct, points), strict=True):
        if expected is None:
            assert mean is None
        else:
            torch.testing.assert_close(mean.to(expected), expected, **tolerance)


def some_factor(seed, like):
    """A factor centred anywhere."""
    shift, center = random_point(seed, like), random_point(seed + 1, like)
    precision = torch.rand(len(shift), 1, *[1] * (shift.dim() - 2), dtype=shift.dtype)
    return GaussianFactor(precision, shift, center)


def factors_of(seed, mixture):
    """No factor, that of guidance, and that of guidance with the second order."""
    prediction = guide(mixture, random_point(seed, mixture), 0.3, 1.0)
    second = second_order(prediction, random_point(seed + 1, mixture), 0.2, 0.25, Damping(added=0.0, guided=0.0))
    return [None, prediction.factor, second]


def cast(value, dtype):
    """A mixture or a factor in another precision."""
    return None if value is None else type(value)(*(part.to(dtype) for part in vars(value).values()))


def grids(substeps):
    """A first step from the source, one in the middle, and a last one onto the data."""
    whole = full_grid(3 * substeps, 2.0).tolist()
    return [whole[i * substeps : (i + 1) * substeps + 1] for i in range(3)]


@FORMS
@pytest.mark.parametrize(
    ("components", "channels", "spatial"),
    [
        (1, 1, ()),
        (1, 768, (2,)),
        (2, 3, (2, 2)),
        (4, 40, (5,)),
        (8, 768, (1,)),
        (64, 1, (2,)),
        (64, 12, (3,)),
        (64, 768, (1,)),
    ],
)
def test_the_reduced_posterior_is_the_definition(components, channels, spatial, form):
    """At several later points and along whole steps; to rounding, relative to the size of the numbers."""
    mixture = cast(random_mixture(20, 2, components, channels, spatial), torch.float32)
    x = random_point(21, mixture)
    size = max(mixture.means.abs().max().item(), x.abs().max().item())
    for factor in factors_of(22, mixture):
        exact = cast(mixture, torch.float64)
        exact = exact if factor is None else exact.times(cast(factor, torch.float64))
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
            given = cast(mixture, dtype), x.to(dtype)
            for t in (1.0, 0.4):
                (reduced,) = reduced_posteriors(*given, t, [cast(factor, dtype)], form=form)
                direct = DirectPosterior(exact, x.double(), t)
                for r in (t, 0.95 * t, 0.6 * t, 0.02 * t):
                    point = r / t * reduced.start + (1 - r / t) * reduced.mean_at(reduced.start, t)
                    x_r, mean = reduced.lift(r, point, reduced.mean_at(point, r))
                    expected = direct.mean_at(x_r.double(), r)
                    torch.testing.assert_close(mean.double(), expected, atol=tolerance * size, rtol=0)
                points = torch.linspace(t, 0.25 * t, 5, dtype=torch.float64).tolist()
                assert_same_way(reduced, direct, points, atol=tolerance * size, rtol=0)


@FORMS
@pytest.mark.parametrize("spatial", [(), (5,), (2, 3)])
@pytest.mark.parametrize(("components", "channels"), [(1, 3), (4, 2), (3, 40)])
def test_whole_steps_follow_the_definition(components, channels, spatial, form):
    mixture = random_mixture(0, components=components, channels=channels, spatial=spatial)
    x = random_point(1, mixture)
    for substeps in (1, 2, 9):
        for points in grids(substeps):
            (reduced,) = reduced_posteriors(mixture, x, points[0], form=form)
            assert_same_way(reduced, DirectPosterior(mixture, x, points[0]), points)


@FORMS
@pytest.mark.parametrize(("components", "channels"), [(5, 2), (4, 30)])
def test_points_pass_between_the_posteriors_of_several_factors(components, channels, form):
    """Each is as if the mixture had been multiplied first; a point that one found is a point of the other."""
    mixture = random_mixture(10, components=components, channels=channels)
    x, first, second = random_point(11, mixture), some_factor(12, mixture), some_factor(14, mixture)
    for t, s in ((1.0, 0.7), (0.6, 0.2)):
        for one, other in ((first, second), (first, None), (None, second), (first, first)):
            leading, ahead = reduced_posteriors(mixture, x, t, (one, other), form=form)
            point = s / t * leading.start + (1 - s / t) * leading.mean_at(leading.start, t)
            lifted, mean = leading.lift(s, point, ahead.mean_at(point, s))
            led, seen = (mixture if factor is None else mixture.times(factor) for factor in (one, other))
            torch.testing.assert_close(lifted, s / t * x + (1 - s / t) * led.mean())
            torch.testing.assert_close(mean, DirectPosterior(seen, x, t).mean_at(lifted, s))


def test_a_mean_that_is_known_is_not_needed_exactly():
    """It only centres the numbers."""
    mixture = random_mixture(18)
    x, points = random_point(19, mixture), grids(3)[1]
    near = mixture.mean() + 0.1 * random_point(20, mixture)
    (reduced,) = reduced_posteriors(mixture, x, points[0], mean=near)
    assert_same_way(reduced, DirectPosterior(mixture, x, points[0]), points)


@pytest.mark.parametrize(("components", "channels", "kind"), [(64, 2, Axes), (8, 4, Axes), (8, 768, Span)])
def test_the_form_is_the_cheaper_one(components, channels, kind):
    mixture = random_mixture(16, components=components, channels=channels)
    vector = random_point(17, mixture).flatten(2).movedim(1, -1).unsqueeze(2)
    assert isinstance(vectors_of(rows(mixture.means), vector, [vector]), kind)


@FORMS
@pytest.mark.parametrize("shape_of_variance", [(4, 1, 1), (1, 2, 2), (4, 2, 2)], ids=["component", "position", "both"])
def test_variances_of_components_and_positions_follow_the_definition(shape_of_variance, form):
    mixture = random_mixture(2)
    components, *spatial = shape_of_variance
    varied = torch.rand(2, components, 1, *spatial, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixture = GaussianMixture(mixture.means, mixture.log_weights, varied + 0.1)
    x, factor = random_point(3, mixture), some_factor(4, mixture)
    for points in grids(6):
        plain, tilted = reduced_posteriors(mixture, x, points[0], (None, factor), form=form)
        assert_same_way(plain, DirectPosterior(mixture, x, points[0]), points)
        assert_same_way(tilted, DirectPosterior(mixture.times(factor), x, points[0]), points)


HARD = ["plain", "nearly equal means", "equal means", "tiny variance", "no variance", "far means", "a weight of zero"]


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


@FORMS
@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("channels", [2, 64])
def test_float32_is_exact_to_rounding(name, channels, form):
    single = cast(strained(name, channels), torch.float32)
    x = random_point(5, single)
    size = single.means.abs().max().item()
    for points in grids(16):
        (reduced,) = reduced_posteriors(single, x, points[0], form=form)
        direct = DirectPosterior(cast(single, torch.float64), x.double(), points[0])
        means, truth = along(reduced, points)[0], along(direct, points)[0]
        torch.testing.assert_close(means.double(), truth, atol=2e-6 * max(1, size), rtol=2e-6)


def test_the_memory_layout_of_the_means_does_not_matter():
    mixture = random_mixture(6)
    inner = mixture.means.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    other = GaussianMixture(inner, mixture.log_weights, mixture.variance)
    x, points = random_point(7, mixture), grids(5)[1]
    first, second = (reduced_posteriors(gaussians, x, points[0])[0] for gaussians in (mixture, other))
    assert_same_way(first, second, points)


@FORMS
def test_nothing_is_written_into_the_arguments(form):
    mixture = random_mixture(8)
    x, factor = random_point(9, mixture), some_factor(10, mixture)
    arguments = [x, *vars(mixture).values(), *vars(factor).values()]
    before = [argument.clone() for argument in arguments]
    points = grids(4)[0]
    along(reduced_posteriors(mixture, x, points[0], [factor], form=form)[0], points)
    assert all(torch.equal(argument, old) for argument, old in zip(arguments, before, strict=True))
