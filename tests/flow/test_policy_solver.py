"""A student's solver: the reference's times, one evaluation per step, and the noise that it renews."""

import itertools
import math

import pytest
import torch
from golden import TOLERANCE, arrays
from test_policy import CENTERS, WEIGHTS, exact_student

from gmtool.flow.coordinates import Plain, Whitened, converted
from gmtool.flow.imitation import Segments
from gmtool.flow.solvers.base import integrate
from gmtool.flow.solvers.policy import PolicySolver, kept_noise
from gmtool.flow.source import ModeStatistics
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.streams import SampleNoise

GRIDS = ((4, 0.5, 3.2, 0.0), (4, 1.0, 3.2, 1.0), (2, 1.0, 1.0, math.inf))


@pytest.mark.parametrize("index", range(3))
def test_aims_and_kept_noise_are_the_reference_s(index):
    reference, (count, last, shift, renewal) = arrays("piflow"), GRIDS[index]
    times = Segments(count, last, shift).grid().tolist()
    kept = [kept_noise(t, s, renewal) for t, s in itertools.pairwise(times)]
    aims = [s * m / (1 - s + s * m) for s, m in zip(times[1:], kept, strict=True)]
    torch.testing.assert_close(torch.tensor(times), reference[f"grid{index}_t"], **TOLERANCE)
    torch.testing.assert_close(torch.tensor(kept), reference[f"grid{index}_m"], **TOLERANCE)
    torch.testing.assert_close(torch.tensor(aims), reference[f"grid{index}_dst"], **TOLERANCE)


def counted(predict):
    calls = []

    def model(x, t):
        calls.append(float(t[0]))
        return predict(x, t)

    return model, calls


def test_an_exact_student_draws_what_many_steps_do_whatever_its_evaluations():
    predict, _ = exact_student(CENTERS, 0.3, WEIGHTS)
    x = torch.randn(64, 3, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = []
    for count in (1, 3):
        model, calls = counted(predict)
        segments = Segments(count, 0.5, 2.0)
        ends.append(integrate(PolicySolver(shift=2.0, substeps=1000), model, x, segments.grid()))
        assert calls == pytest.approx(segments.grid()[:-1].tolist())
    torch.testing.assert_close(ends[0], ends[1], atol=2e-2, rtol=0)


@pytest.mark.parametrize("renewal", [0.7, 20.0])
def test_renewed_noise_leaves_the_distribution_as_it_is(renewal):
    """Moments of an exact student's samples of two well separated modes."""
    centers, weights = torch.tensor([[2.0], [-1.0]]), torch.tensor([0.25, 0.75])
    predict, _ = exact_student(centers, 0.2, weights)
    count = 6000
    noise = SampleNoise(0, range(count))
    x = noise.normal((1, 1, 1))
    end = integrate(PolicySolver(renewal=renewal), predict, x, Segments(3).grid(), noise).flatten()
    assert float(end.mean()) == pytest.approx(-0.25, abs=0.06)
    assert float((end > 0.5).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(end[end > 0.5].std()) == pytest.approx(0.2, abs=0.02)


def test_a_step_that_renews_noise_needs_some():
    predict, _ = exact_student(CENTERS, 0.3, WEIGHTS)
    with pytest.raises(ValueError, match="random numbers"):
        integrate(PolicySolver(renewal=1.0), predict, torch.zeros(2, 3, 1, 1), Segments(2).grid())


def test_the_last_policy_has_no_temperature():
    predict, _ = exact_student(CENTERS, 0.3, WEIGHTS)
    x = torch.randn(4, 3, 1, 1, dtype=torch.float64)
    warm, cold = (
        [integrate(PolicySolver(temperature=t), predict, x, Segments(count).grid()) for count in (1, 2)]
        for t in (1.0, 0.2)
    )
    torch.testing.assert_close(warm[0], cold[0])
    assert float((warm[1] - cold[1]).abs().max()) > 1e-2


def test_a_network_speaks_other_coordinates_than_the_flow():
    """The velocity of a mode's own path is the same in both; of a mixture the means are converted as velocities are."""
    torch.manual_seed(0)
    modes = ModeStatistics(torch.randn(2, 3, 2, 1), torch.rand(2, 3, 2, 1) + 0.1)
    x, y, t = torch.randn(2, 3, 2, 1), torch.randn(2, 3, 2, 1), torch.rand(2)

    def predict(x_t, _t):
        return 2 * x_t

    velocity = converted(predict, Plain(), Whitened(), modes)(y, t)
    torch.testing.assert_close(velocity, 2 * (modes.mean + modes.std * y) / modes.std)
    there_and_back = converted(converted(predict, Plain(), Whitened(), modes), Whitened(), Plain(), modes)
    torch.testing.assert_close(there_and_back(x, t), predict(x, t))
    means, variance = torch.randn(2, 4, 3, 2, 1), torch.rand(2, 1, 1, 1, 1)
    mixture = GaussianMixture(means, torch.log_softmax(torch.randn(2, 4, 1, 2, 1), 1), variance)
    inside = converted(lambda _x, _t: mixture, Plain(), Whitened(), modes)(y, t)
    torch.testing.assert_close(inside.mean(), mixture.mean() / modes.std)
    assert inside.variance is variance
    several = converted(lambda _x, _t: means, Plain(), Whitened(), modes)(y, t)
    torch.testing.assert_close(several, inside.means)
