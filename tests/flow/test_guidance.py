import golden
import pytest
import torch
from toys import exact_posterior, random_mixture, random_point

from gmtool.flow.guidance.auto import auto_mixture, auto_velocity
from gmtool.flow.guidance.cfg import classifier_free
from gmtool.flow.guidance.interval import within
from gmtool.flow.guidance.probabilistic import guidance_bias, guide, probabilistic
from gmtool.flow.guidance.weights import component_weights, reweight
from gmtool.flow.path import mean_velocity
from gmtool.flow.prediction import sample_gaussian, sample_mean, unguided
from gmtool.flow.solvers.mixture import gm_ode
from gmtool.flow.solvers.table import integrate
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.streams import Noise

G = golden.arrays("gmflow_math")


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_probabilistic_guidance_matches_the_reference(case):
    scale, orthogonal = float(G[f"guid_{case}_scale"]), float(G[f"guid_{case}_orthogonal"])
    found = guide(golden.predicted(G), G["uncond_mean"], scale, orthogonal)
    expected = golden.mixture(G, f"guid_{case}")
    torch.testing.assert_close(found.bias, G[f"guid_{case}_bias"], **golden.TOLERANCE)
    torch.testing.assert_close(found.gaussian.variance, G[f"guid_{case}_avg_var"], **golden.TOLERANCE)
    torch.testing.assert_close(found.gaussian.mean + found.bias, G[f"guid_{case}_gauss_mean"], **golden.TOLERANCE)
    torch.testing.assert_close(found.mixture.means, expected.means, **golden.TOLERANCE)
    torch.testing.assert_close(found.mixture.variance, expected.variance, **golden.TOLERANCE)
    torch.testing.assert_close(found.mixture.log_weights, expected.log_weights, **golden.TOLERANCE)


def test_bias_has_the_length_of_the_scale_and_is_orthogonal_to_the_mean():
    mixture = random_mixture(0)
    gaussian = sample_gaussian(mixture)
    bias = guidance_bias(gaussian, random_point(1, mixture), scale=0.4, orthogonal=1.0)
    torch.testing.assert_close(sample_mean(bias.square()), 0.4**2 * gaussian.variance)
    torch.testing.assert_close(sample_mean(bias * gaussian.mean), torch.zeros(2, 1, 1, 1, dtype=torch.float64))


def test_one_component_guides_to_the_shifted_gaussian():
    """With K = 1 and equal positions the mixture is its own Gaussian, and the product is the guided Gaussian."""
    mixture = random_mixture(3, components=1)
    found = guide(mixture, random_point(4, mixture), scale=0.5, orthogonal=0.0)
    torch.testing.assert_close(found.mixture.mean(), found.gaussian.mean + found.bias)
    torch.testing.assert_close(found.mixture.variance, 0.75 * mixture.variance)


def test_no_scale_changes_nothing_but_rounding():
    mixture = random_mixture(5)
    found = guide(mixture, random_point(6, mixture), scale=0.0, orthogonal=1.0)
    torch.testing.assert_close(found.mixture.mean(), mixture.mean(), atol=1e-4, rtol=1e-4)


def test_classifier_free_guidance_extrapolates():
    x, t = torch.randn(2, 3), torch.ones(2)
    guided = classifier_free(lambda x, t: x + 1, lambda x, t: x - 1, 2.0)
    torch.testing.assert_close(guided(x, t), x + 3)
    torch.testing.assert_close(classifier_free(lambda x, t: x + 1, lambda x, t: x - 1, 1.0)(x, t), x + 1)


def with_weights(mixture, weights):
    return GaussianMixture(mixture.means, weights.log(), mixture.variance)


def test_reweighting_follows_its_formula():
    conditional = random_mixture(0, components=3)
    unconditional = random_mixture(1, components=3)
    c, u = conditional.log_weights.exp(), unconditional.log_weights.exp()
    found = reweight(conditional, unconditional, 2.5)
    expected = c * (c / u) ** 1.5
    torch.testing.assert_close(found.log_weights.exp(), expected / expected.sum(1, keepdim=True))
    assert torch.equal(found.means, conditional.means) and torch.equal(found.variance, conditional.variance)


def test_reweighting_by_one_and_by_equal_mixtures_changes_nothing():
    conditional, other = random_mixture(0), random_mixture(1)
    torch.testing.assert_close(reweight(conditional, other, 1.0).log_weights, conditional.log_weights)
    torch.testing.assert_close(reweight(conditional, conditional, 7.0).log_weights, conditional.log_weights)


@pytest.mark.parametrize("scale", [1.0, 1.5, 30.0])
def test_reweighting_is_safe_for_weights_of_zero(scale):
    """Zero in the conditional mixture stays zero; zero in the unconditional one leaves a finite mixture."""
    mixture = random_mixture(0, components=4, spatial=(), dtype=torch.float32)
    conditional = with_weights(mixture, torch.tensor([0.5, 0.5, 0.0, 0.0]).reshape(1, 4, 1).expand(2, -1, -1))
    unconditional = with_weights(mixture, torch.tensor([0.6, 0.0, 0.4, 0.0]).reshape(1, 4, 1).expand(2, -1, -1))
    weights = reweight(conditional, unconditional, scale).log_weights.exp().squeeze(2)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert (weights[:, 2:] == 0).all()
    assert (weights[:, 1] >= 0.5).all()


def test_reweighting_sends_more_samples_where_the_condition_points():
    """Two far modes: a conditional share of 0.8 against 0.5 becomes 0.8^w / (0.8^w + 0.2^w)."""
    centers = torch.tensor([[-3.0], [3.0]], dtype=torch.float64)
    models = [exact_posterior(centers, 0.2, torch.tensor(w, dtype=torch.float64)) for w in ([0.2, 0.8], [0.5, 0.5])]
    x, t = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    found = component_weights(*models, 2.0)(x, t).mixture.log_weights.exp().flatten()
    torch.testing.assert_close(found, torch.tensor([0.04, 0.64], dtype=torch.float64) / 0.68)


def test_autoguidance_of_a_velocity_extrapolates_from_the_weaker_model():
    x, t = torch.randn(2, 3), torch.ones(2)
    torch.testing.assert_close(auto_velocity(lambda x, t: x + 1, lambda x, t: x - 1, 1.5)(x, t), x + 2)


def test_autoguidance_of_a_mixture_is_probabilistic_guidance_against_the_weaker_mean():
    strong, weak = random_mixture(0), random_mixture(1)
    x, t = random_point(2, strong), torch.tensor([0.4, 0.9], dtype=torch.float64)
    weaker = lambda x, t: mean_velocity(x, t, weak.mean())  # noqa: E731
    found = auto_mixture(lambda x, t: unguided(strong), weaker, 0.3, 0.5)(x, t)
    expected = probabilistic(lambda x, t: unguided(strong), lambda x, t: unguided(weak), 0.3, 0.5)(x, t)
    torch.testing.assert_close(found.mixture.mean(), expected.mixture.mean())
    torch.testing.assert_close(found.bias, expected.bias)
    assert found.scale == 0.3


def counted(calls, name, model):
    def count(x, t):
        calls.append((name, round(t[0].item(), 6)))
        return model(x, t)

    return count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_interval_includes_its_ends_and_spares_the_evaluations_outside(dtype):
    """On the grid 1, 0.9, ... 0.1 the interval 0.3,0.7 guides five times; elsewhere the plain model is asked alone."""
    calls = []
    plain = counted(calls, "conditional", lambda x, t: 0 * x)
    guided = classifier_free(plain, counted(calls, "hidden", lambda x, t: 0 * x + 1), 2.0)
    x = torch.zeros(2, 1, dtype=dtype)
    end = integrate("euler", within((0.3, 0.7), guided, plain), x, 10, 1.0, Noise(0, range(2)))
    assert [time for name, time in calls if name == "hidden"] == [0.7, 0.6, 0.5, 0.4, 0.3]
    assert len(calls) == 15
    # guided, the velocity is 1 + 2 (0 - 1) = -1 over five steps of -0.1
    torch.testing.assert_close(end, torch.full_like(x, 0.5))


def test_the_interval_of_a_mixture_switches_to_the_conditional_prediction():
    mixture, other = random_mixture(0), random_mixture(1)
    plain = lambda x, t: unguided(mixture)  # noqa: E731
    model = within((0.5, 1.0), probabilistic(plain, lambda x, t: unguided(other), 0.5), plain)
    x = random_point(2, mixture)
    found, expected = model(x, torch.full((2,), 0.5)), guide(mixture, other.mean(), 0.5, 1.0)
    torch.testing.assert_close(found.mixture.means, expected.mixture.means)
    assert not torch.equal(found.mixture.means, mixture.means)
    assert model(x, torch.full((2,), 0.49)).mixture is mixture


def test_an_interval_of_all_times_is_no_interval():
    centers, draw = torch.tensor([[-1.0, 0.5], [1.0, 0.8]], dtype=torch.float64), torch.Generator().manual_seed(0)
    plain = exact_posterior(centers, 0.3, torch.tensor([0.2, 0.8], dtype=torch.float64))
    guided = probabilistic(plain, exact_posterior(centers, 0.3, torch.tensor([0.5, 0.5], dtype=torch.float64)), 0.4)
    x = torch.randn(3, 2, dtype=torch.float64, generator=draw)
    found = gm_ode(within((0.0, 1.0), guided, plain), x, 4, 1.0, order=2, substeps=3)
    torch.testing.assert_close(found, gm_ode(guided, x, 4, 1.0, order=2, substeps=3))
