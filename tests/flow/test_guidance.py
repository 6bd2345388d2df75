import golden
import pytest
import torch
from toys import exact_posterior, random_mixture, random_point, solve

from gmtool.flow.guidance import GUIDANCES
from gmtool.flow.guidance.cfg import ClassifierFree
from gmtool.flow.guidance.interval import within
from gmtool.flow.guidance.probabilistic import Probabilistic, guidance_bias, guide
from gmtool.flow.guidance.weights import ComponentWeights, reweight
from gmtool.flow.model import Prediction, sample_gaussian, sample_mean, unguided
from gmtool.flow.path import mean_velocity
from gmtool.flow.solvers.euler import Euler
from gmtool.flow.solvers.gm_ode import GmOde
from gmtool.mixture.gaussian_mixture import GaussianMixture

G = golden.arrays("gmflow_math")


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_probabilistic_guidance_matches_the_reference(case):
    scale, orthogonal = float(G[f"guid_{case}_scale"]), float(G[f"guid_{case}_orthogonal"])
    guided = guide(golden.predicted(G), G["uncond_mean"], scale, orthogonal)
    expected = golden.mixture(G, f"guid_{case}")
    torch.testing.assert_close(guided.guidance.bias, G[f"guid_{case}_bias"], **golden.TOLERANCE)
    torch.testing.assert_close(guided.gaussian.variance, G[f"guid_{case}_avg_var"], **golden.TOLERANCE)
    torch.testing.assert_close(
        guided.gaussian.mean + guided.guidance.bias, G[f"guid_{case}_gauss_mean"], **golden.TOLERANCE
    )
    torch.testing.assert_close(guided.mixture.means, expected.means, **golden.TOLERANCE)
    torch.testing.assert_close(guided.mixture.variance, expected.variance, **golden.TOLERANCE)
    torch.testing.assert_close(guided.mixture.log_weights, expected.log_weights, **golden.TOLERANCE)


def test_bias_has_the_length_of_the_scale_and_is_orthogonal_to_the_mean():
    mixture = random_mixture(0)
    gaussian = sample_gaussian(mixture)
    bias = guidance_bias(gaussian, random_point(1, mixture), scale=0.4, orthogonal=1.0)
    torch.testing.assert_close(sample_mean(bias.square()), 0.4**2 * gaussian.variance)
    torch.testing.assert_close(sample_mean(bias * gaussian.mean), torch.zeros(2, 1, 1, 1, dtype=torch.float64))


def test_one_component_guides_to_the_shifted_gaussian():
    """With K = 1 and equal positions the mixture is its own Gaussian, and the product is the guided Gaussian."""
    mixture = random_mixture(3, components=1)
    guided = guide(mixture, random_point(4, mixture), scale=0.5, orthogonal=0.0)
    torch.testing.assert_close(guided.mixture.mean(), guided.gaussian.mean + guided.guidance.bias)
    torch.testing.assert_close(guided.mixture.variance, 0.75 * mixture.variance)


def test_no_scale_changes_nothing_but_rounding():
    mixture = random_mixture(5)
    guided = guide(mixture, random_point(6, mixture), scale=0.0, orthogonal=1.0)
    torch.testing.assert_close(guided.mixture.mean(), mixture.mean(), atol=1e-4, rtol=1e-4)


def test_classifier_free_guidance_extrapolates():
    x, t = torch.randn(2, 3), torch.ones(2)
    guided = ClassifierFree(2.0)(lambda x, t: x + 1, lambda x, t: x - 1)
    torch.testing.assert_close(guided(x, t), x + 3)
    torch.testing.assert_close(ClassifierFree(1.0)(lambda x, t: x + 1, lambda x, t: x - 1)(x, t), x + 1)


def with_weights(mixture, weights):
    return GaussianMixture(mixture.means, weights.log(), mixture.variance)


def test_reweighting_follows_its_formula():
    conditional = random_mixture(0, components=3)
    unconditional = random_mixture(1, components=3)
    c, u = conditional.log_weights.exp(), unconditional.log_weights.exp()
    reweighted = reweight(conditional, unconditional, 2.5)
    expected = c * (c / u) ** 1.5
    torch.testing.assert_close(reweighted.log_weights.exp(), expected / expected.sum(1, keepdim=True))
    assert torch.equal(reweighted.means, conditional.means) and torch.equal(reweighted.variance, conditional.variance)


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
    weights = ComponentWeights(2.0)(*models)(x, t).mixture.log_weights.exp().flatten()
    torch.testing.assert_close(weights, torch.tensor([0.04, 0.64], dtype=torch.float64) / 0.68)


def test_autoguidance_of_a_velocity_extrapolates_from_the_weaker_model():
    x, t = torch.randn(2, 3), torch.ones(2)
    auto = GUIDANCES["auto"].forms["velocity"].make(1.5, 1.0)
    torch.testing.assert_close(auto(lambda x, t: x + 1, lambda x, t: x - 1)(x, t), x + 2)


@pytest.mark.parametrize("name", ["prob", "auto"])
def test_probabilistic_guidance_is_away_from_the_mean_of_the_other_velocity(name):
    strong, weak = random_mixture(0), random_mixture(1)
    x, t = random_point(2, strong), torch.tensor([0.4, 0.9], dtype=torch.float64)
    scheme = GUIDANCES[name].forms["mixture"].make(0.3, 0.5)
    guided = scheme(lambda x, t: unguided(strong), lambda x, t: mean_velocity(x, t, weak.mean()))(x, t)
    expected = guide(strong, weak.mean(), 0.3, 0.5)
    torch.testing.assert_close(guided.mixture.mean(), expected.mixture.mean())
    torch.testing.assert_close(guided.guidance.bias, expected.guidance.bias)
    assert guided.guidance.scale == 0.3


def on_velocity(x, t):
    return -x


def on_mixture(x, t):
    return unguided(random_mixture(7, batch=len(x)))


FORMS = [(name, on) for name, entry in GUIDANCES.items() for on in entry.forms]


@pytest.mark.parametrize(("name", "on"), FORMS)
def test_every_form_of_the_table_makes_a_guided_model_of_its_kind(name, on):
    """It takes models of the kinds that its row says, asks each once, and changes nothing at the least scale."""
    form, calls = GUIDANCES[name].forms[on], []
    models = {"velocity": on_velocity, "mixture": on_mixture}
    others = {"velocity": lambda x, t: x + 1, "mixture": lambda x, t: unguided(random_mixture(8, batch=len(x)))}
    x, t = random_point(9, random_mixture(7)), torch.full((2,), 0.5, dtype=torch.float64)

    def value(model):
        predicted = model(x, t)
        assert isinstance(predicted, Prediction if on == "mixture" else torch.Tensor)
        return predicted.mixture.mean() if on == "mixture" else predicted

    def guided(scale):
        scheme = form.make(scale, 1.0)
        assert scheme.scale == scale
        return scheme(counted(calls, "model", models[on]), counted(calls, "other", others[form.other]))

    plain, default = value(models[on]), value(guided(form.scale.default))
    assert [name for name, _ in sorted(calls)] == ["model", "other"]
    assert (default - plain).abs().max() > 1e-3
    torch.testing.assert_close(value(guided(form.scale.minimum)), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "on"), FORMS)
def test_a_range_of_scales_holds_its_default_and_numbers_alone(name, on):
    scale = GUIDANCES[name].forms[on].scale
    assert scale.default in scale and scale.minimum in scale
    assert all(refused not in scale for refused in (scale.minimum - 1e-9, float("nan"), float("inf"), -float("inf")))
    assert scale.below not in scale if scale.below is not None else 1e9 in scale
    assert str(scale) == ("at least 1" if scale.below is None else "in [0, 1)")


def test_only_probabilistic_guidance_has_an_orthogonal_part():
    """Of a direction along the mean alone nothing is left by orthogonal = 1, and all of it by 0."""
    mixture = random_mixture(10, components=1)
    x, t = random_point(11, mixture), torch.full((2,), 0.5, dtype=torch.float64)
    for name, on in FORMS:
        form = GUIDANCES[name].forms[on]
        if form.orthogonal:
            along = lambda x, t: mean_velocity(x, t, 0.5 * mixture.mean())  # noqa: E731
            whole, none = (form.make(0.5, share)(lambda x, t: unguided(mixture), along)(x, t) for share in (0.0, 1.0))
            assert none.guidance.bias.abs().max() < 1e-6 < 0.1 < whole.guidance.bias.abs().max()
    assert {name for name, on in FORMS if GUIDANCES[name].forms[on].orthogonal} == {"prob", "auto"}


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
    guided = ClassifierFree(2.0)(plain, counted(calls, "hidden", lambda x, t: 0 * x + 1))
    x = torch.zeros(2, 1, dtype=dtype)
    end = solve(Euler(), within((0.3, 0.7), guided, plain), x, 10)
    assert [time for name, time in calls if name == "hidden"] == [0.7, 0.6, 0.5, 0.4, 0.3]
    assert len(calls) == 15
    # guided, the velocity is 1 + 2 (0 - 1) = -1 over five steps of -0.1
    torch.testing.assert_close(end, torch.full_like(x, 0.5))


def test_the_interval_of_a_mixture_switches_to_the_conditional_prediction():
    mixture, other = random_mixture(0), random_mixture(1)
    plain = lambda x, t: unguided(mixture)  # noqa: E731
    away_from = lambda x, t: mean_velocity(x, t, other.mean())  # noqa: E731
    model = within((0.5, 1.0), Probabilistic(0.5)(plain, away_from), plain)
    x = random_point(2, mixture)
    predicted, expected = model(x, torch.full((2,), 0.5)), guide(mixture, other.mean(), 0.5, 1.0)
    torch.testing.assert_close(predicted.mixture.means, expected.mixture.means)
    assert not torch.equal(predicted.mixture.means, mixture.means)
    assert model(x, torch.full((2,), 0.49)).mixture is mixture


def test_an_interval_of_all_times_asks_for_no_time():
    """Of a time on the meta device nothing can be read, as to read one on a GPU would wait for it."""
    plain = lambda x, t: 0 * x  # noqa: E731
    x, t = torch.zeros(2, 1, device="meta"), torch.zeros(2, device="meta")
    assert within((0.0, 1.0), plain, plain)(x, t).shape == x.shape
    with pytest.raises(RuntimeError, match="meta"):
        within((0.1, 1.0), plain, plain)(x, t)


def test_an_interval_of_all_times_is_no_interval():
    centers, draw = torch.tensor([[-1.0, 0.5], [1.0, 0.8]], dtype=torch.float64), torch.Generator().manual_seed(0)
    plain = exact_posterior(centers, 0.3, torch.tensor([0.2, 0.8], dtype=torch.float64))
    other = exact_posterior(centers, 0.3, torch.tensor([0.5, 0.5], dtype=torch.float64))
    guided = Probabilistic(0.4)(plain, lambda x, t: mean_velocity(x, t, other(x, t).gaussian.mean))
    x = torch.randn(3, 2, dtype=torch.float64, generator=draw)
    solver = GmOde(substeps=3)
    torch.testing.assert_close(solve(solver, within((0.0, 1.0), guided, plain), x, 4), solve(solver, guided, x, 4))
