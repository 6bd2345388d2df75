"""Policies: the reference's values, the exact flow of an exact mixture, rolls that depend on no other sample."""

import math

import pytest
import torch
from golden import TOLERANCE, arrays, mixture
from toys import exact_posterior, random_mixture, random_point

from gmtool.flow.model import velocity_model
from gmtool.flow.path import mean_velocity
from gmtool.flow.policy import POLICIES, MixturePolicy, Point, Segment, moving, roll_grid
from gmtool.flow.posterior import DirectPosterior
from gmtool.flow.times import raw_time
from gmtool.mixture.gaussian_mixture import GaussianMixture


@pytest.fixture(scope="module")
def reference():
    return arrays("piflow")


def segment_of(reference):
    return Segment(raw_time(reference["t_src"], 3.2), torch.full((4,), 0.5), 3.2)


def gm_policy(reference):
    return POLICIES["gm"](mixture(reference, "u"), reference["x_src"], segment_of(reference))


def exact_student(centers, std, weights):
    """The mixture over the velocity that a perfect network predicts, and the exact velocity."""
    data = exact_posterior(centers, std, weights)

    def predict(x, t):
        posterior, time = data(x, t).mixture, t.reshape(-1, *[1] * x.dim())
        return GaussianMixture(
            (x.unsqueeze(1) - posterior.means) / time, posterior.log_weights, posterior.variance / time.square()
        )

    return predict, velocity_model(predict)


CENTERS = torch.tensor([[2.0, 0.0, -1.0], [-1.0, 1.5, 0.5], [0.0, -2.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)


def test_velocities_are_the_reference_s(reference):
    policy = gm_policy(reference)
    at_start = policy.velocity(reference["x_src"], reference["t_src"])
    torch.testing.assert_close(at_start, reference["gm_velocity_at_src"], **TOLERANCE)
    torch.testing.assert_close(
        policy.velocity(reference["x_r"], reference["t_r"]), reference["gm_velocity"], **TOLERANCE
    )


@pytest.mark.parametrize("index", [0, 1])
def test_a_temperature_is_the_reference_s(reference, index):
    cooled = gm_policy(reference).cooled(float(reference[f"temp{index}"]))
    for name, cooled_part in (
        ("x0_means", cooled.mixture.means),
        ("x0_vars", cooled.mixture.variance),
        ("x0_logweights", cooled.mixture.log_weights),
        ("velocity", cooled.velocity(reference["x_r"], reference["t_r"])),
    ):
        torch.testing.assert_close(cooled_part, reference[f"temp{index}_{name}"], **TOLERANCE)


def test_dropped_components_are_the_reference_s(reference):
    kept = gm_policy(reference).detach(reference["dropout_mask"] > 0)
    velocity = kept.velocity(reference["x_r"], reference["t_r"])
    torch.testing.assert_close(velocity, reference["dropout_velocity"], **TOLERANCE)


@pytest.mark.parametrize(("name", "key"), [("dx", "grid"), ("dx-poly", "poly")])
def test_data_policies_are_the_reference_s(reference, name, key):
    policy = POLICIES[name](reference["dx_output"], reference["x_src"], segment_of(reference))
    velocity = policy.velocity(reference["x_r"], reference["t_r"])
    torch.testing.assert_close(velocity, reference[f"dx_{key}_velocity"], **TOLERANCE)


@pytest.mark.parametrize("index", [0, 1])
def test_rolls_are_the_reference_s(reference, index):
    start, end = reference[f"roll{index}_raw_start"], reference[f"roll{index}_raw_end"]
    times = roll_grid(start, end, float(reference[f"roll{index}_shift"]), 128)
    torch.testing.assert_close(times[-1], reference[f"roll{index}_t"], **TOLERANCE)
    policy = gm_policy(reference)
    for x in (policy.x_t, policy.x_t.clone()):  # from the policy's own start, and from a point like any other
        torch.testing.assert_close(policy.roll(x, times), reference[f"roll{index}_x"], **TOLERANCE)


def test_the_policy_of_an_exact_mixture_is_the_exact_flow():
    predict, exact = exact_student(CENTERS, 0.3, WEIGHTS)
    segment = Segment(
        torch.tensor([1.0, 0.8, 0.6], dtype=torch.float64), torch.full((3,), 0.6, dtype=torch.float64), 2.0
    )
    x = torch.randn(3, 3, 2, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy = POLICIES["gm"](predict(x, segment.t), x, segment)
    times = roll_grid(segment.start, segment.end, 2.0, 200, 0.6)
    expected = x
    for r, after in zip(times, times[1:]):  # noqa: B905, RUF007  # pairs of rows
        torch.testing.assert_close(policy.velocity(expected, r), exact(expected, r))
        expected = expected + (after - r).reshape(-1, 1, 1, 1) * exact(expected, r)
    torch.testing.assert_close(policy.roll(x, times), expected)


def test_one_component_is_a_shortcut_to_its_mean():
    """From t = 1 the way ends at m + s x_1, as the flow of a Gaussian does: at its mean without a deviation s."""
    single, x = random_mixture(0, components=1), random_point(1, random_mixture(0, components=1))
    ones = torch.ones(2, dtype=torch.float64)
    for std in (1e-6, 0.5):
        mixture = GaussianMixture(single.means, single.log_weights, torch.full_like(single.variance, std**2))
        policy = MixturePolicy(mixture, x, ones)
        end = policy.roll(x, roll_grid(ones, 0 * ones, 1.0, 4000 if std > 1e-3 else 7))
        torch.testing.assert_close(end, single.means[:, 0] + std * x, atol=3e-3, rtol=0)


def test_one_point_of_dx_is_the_shortcut_of_its_velocity():
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    u = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    segment = Segment(torch.tensor([1.0, 0.5], dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64))
    for name in ("dx", "dx-poly"):
        policy = POLICIES[name](u, x, segment)
        torch.testing.assert_close(policy.velocity(x, segment.t), u)
        end = policy.roll(x, roll_grid(segment.start, segment.end, 1.0, 128))
        torch.testing.assert_close(end, x - 0.5 * u)


def test_dx_bends_where_its_points_differ():
    """With x(r) linear in raw time the way is that of dx/dr = (x - x(r)) / r, which has a closed form."""
    x, data = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    segment = Segment(torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    policy = POLICIES["dx"](x.unsqueeze(1) - data.reshape(1, 2, 1, 1, 1), x, segment)
    end = policy.roll(x, roll_grid(torch.ones(1), torch.tensor([0.5]), 1.0, 4000).double())
    # x(r) = 3 - 2 r and x_1 = 1: x_r = 3 + 2 r log r - 2 r
    assert float(end) == pytest.approx(3 + math.log(0.5) - 1, abs=1e-3)


@pytest.mark.parametrize("name", ["gm", "dx"])
def test_samples_of_different_times_are_rolled_as_alone(name):
    torch.manual_seed(0)
    start, length = torch.rand(5, dtype=torch.float64) * 0.5 + 0.5, torch.full((5,), 0.5, dtype=torch.float64)
    segment, x = Segment(start, length, 1.7), torch.randn(5, 3, 12, 11, dtype=torch.float64)
    u = random_mixture(1, 5, 4, 3, (12, 11))
    predicted = u if name == "gm" else u.means
    a, b = start - 0.1 * torch.rand(5), start - 0.5 * torch.rand(5)
    a[2] = b[2] = start[2]  # which stays where it is
    away = x + 0.1 * torch.randn_like(x)
    whole = POLICIES[name](predicted, x, segment).roll(away, roll_grid(a, b.minimum(a), 1.7, 128))
    torch.testing.assert_close(whole[2], away[2])
    for i in range(5):
        one = slice(i, i + 1)
        part = u.means[one] if name == "dx" else GaussianMixture(u.means[one], u.log_weights[one], u.variance[one])
        alone = POLICIES[name](part, x[one], Segment(start[one], length[one], 1.7))
        times = roll_grid(a[one], b[one].minimum(a[one]), 1.7, 128)
        torch.testing.assert_close(alone.roll(away[one], times), whole[one])


@pytest.mark.parametrize("channels", [3, 40], ids=["by channel", "by products"])
def test_a_roll_may_begin_beside_the_way(channels):
    """Steps by the velocity, which knows no coefficients, lead to the same end, whatever was rolled before."""
    u = random_mixture(3, 2, 4, channels, (2, 1))
    x, point = random_point(4, u), random_point(5, u)
    start = torch.tensor([0.9, 0.7], dtype=torch.float64)
    policy = POLICIES["gm"](u, x, Segment(start, start))
    roll = policy.roller()
    for begin, times in (
        (x, roll_grid(start, start - 0.4, 1.0, 30, 0.4)),
        (point, roll_grid(start - 0.1, start - 0.4, 1.0, 30, 0.3)),
        (point + 1, roll_grid(start - 0.2, start - 0.3, 1.0, 30, 0.1)),
    ):
        expected = begin
        for r, after in zip(times, times[1:]):  # noqa: B905, RUF007
            expected = expected + (after - r).reshape(-1, 1, 1, 1) * policy.velocity(expected, r)
        torch.testing.assert_close(roll(begin, times), expected)
        torch.testing.assert_close(policy.roll(begin, times), expected)


@pytest.mark.parametrize("variances", [1, 4])
def test_velocities_at_several_points_are_those_at_each_point(variances):
    u = random_mixture(12)
    u = GaussianMixture(u.means, u.log_weights, u.variance * torch.linspace(0.5, 2, variances).reshape(1, -1, 1, 1, 1))
    start = torch.tensor([0.9, 0.7], dtype=torch.float64)
    policy = POLICIES["gm"](u, random_point(13, u), Segment(start, start))
    points = [Point(random_point(14 + i, u), start - 0.2 * i) for i in range(3)]
    for (x, r), velocity in zip(points, policy.velocities(points), strict=True):
        for i in range(2):
            one = slice(i, i + 1)
            alone = GaussianMixture(*(values[one] for values in vars(policy.mixture).values()))
            expected = DirectPosterior(alone, policy.x_t[one], float(start[i])).mean_at(x[one], float(r[i]))
            torch.testing.assert_close(velocity[one], (x[one] - expected) / r[i])


@pytest.mark.parametrize("channels", [2, 6], ids=["by channel", "by products"])
def test_the_velocity_and_the_roll_have_gradients(channels):
    u = random_mixture(6, 2, 3, channels, (1,))
    x, ones = random_point(7, u), torch.ones(2, dtype=torch.float64)

    def end(means, logits, log_variance):
        mixture = GaussianMixture(means, torch.log_softmax(logits, 1), log_variance.exp())
        policy = MixturePolicy(mixture, x, 0.9 * ones)
        roll, times = policy.roller(), roll_grid(0.9 * ones, 0.6 * ones, 1.0, 10)
        return policy.velocity(x + 0.1, 0.5 * ones), roll(x, times), roll(x + 0.1, times)

    leaves = [t.clone().requires_grad_() for t in (u.means, u.log_weights, u.variance.log())]
    assert torch.autograd.gradcheck(end, leaves)


def test_detached_policies_have_none():
    u = random_mixture(8)
    u.means.requires_grad_()
    ones = torch.ones(2, dtype=torch.float64)
    segment, x = Segment(ones, ones), random_point(9, u)
    for name, predicted in (("gm", u), ("dx", u.means)):
        assert POLICIES[name](predicted, x, segment).velocity(x, 0.5 * ones).requires_grad
        assert not POLICIES[name](predicted, x, segment).detach().velocity(x, 0.5 * ones).requires_grad


def test_what_has_no_mixture_is_no_gm_policy_and_has_no_temperature():
    x, ones = torch.zeros(2, 3, 1, 1), torch.ones(2)
    with pytest.raises(TypeError, match="no mixture"):
        POLICIES["gm"](x, x, Segment(ones, ones))
    with pytest.raises(ValueError, match="temperature"):
        POLICIES["dx"](x, x, Segment(ones, ones)).cooled(0.5)


def test_a_grid_has_a_sub_step_at_least_and_pads_with_the_end():
    times = roll_grid(torch.tensor([1.0, 0.5, 0.3]), torch.tensor([0.9, 0.49, 0.3]), 1.0, 50, 0.1)
    assert times.shape == (6, 3)
    torch.testing.assert_close(times[:, 0], torch.linspace(1, 0.9, 6))
    torch.testing.assert_close(times[:, 1], torch.tensor([0.5, *[0.49] * 5]))
    torch.testing.assert_close(times[:, 2], torch.full((6,), 0.3))
    longer = roll_grid(torch.tensor([1.0, 0.5, 0.3]), torch.tensor([0.9, 0.49, 0.3]), 1.0, 50, 0.5)
    assert torch.equal(longer[:6], times) and torch.equal(longer[6:], times[-1:].expand(20, 3))
    assert len(moving(longer)) == 6
    assert len(moving(times[:, 1:])) == 2
    assert len(moving(times[:, 2:])) == 2


def test_the_velocity_at_the_start_is_that_of_the_prediction():
    u = random_mixture(10)
    start = torch.tensor([0.7, 1.0], dtype=torch.float64)
    x = random_point(11, u)
    policy = POLICIES["gm"](u, x, Segment(start, start))
    torch.testing.assert_close(policy.velocity(x, start), u.mean())
    torch.testing.assert_close(mean_velocity(x, start, policy.mixture.mean()), u.mean())
