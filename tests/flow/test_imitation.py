"""Students: the reference's segments and values, no loss where the student is exact, and what each part is for."""

import pytest
import torch
from golden import TOLERANCE, arrays, mixture
from test_policy import CENTERS, WEIGHTS, exact_student

from gmtool.flow.imitation import Imitation, ImitationDraws, Segments
from gmtool.flow.objective import Draws, Pairs
from gmtool.flow.path import mean_velocity
from gmtool.flow.policy import POLICIES, Segment, roll_grid
from gmtool.flow.times import full_grid, shift_time
from gmtool.training.task import each_tensor


@pytest.fixture(scope="module")
def reference():
    return arrays("piflow")


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("last", [1.0, 0.5])
def test_segments_are_the_reference_s(reference, count, last):
    segments = Segments(count, last).around(reference["segment_raw"])
    torch.testing.assert_close(segments.start, reference[f"segment_n{count}_f{last}_src"], **TOLERANCE)
    torch.testing.assert_close(segments.length, reference[f"segment_n{count}_f{last}_len"], **TOLERANCE)


def test_grids_of_segments_are_the_reference_s(reference):
    for index, segments in enumerate((Segments(4, 0.5, 3.2), Segments(4, 1.0, 3.2), Segments(2))):
        torch.testing.assert_close(segments.grid().float(), reference[f"grid{index}_t"], **TOLERANCE)


def test_numbered_segments_follow_the_grid():
    segments, like = Segments(3, 0.25, 2.0), torch.zeros(2, 1)
    ends = []
    for index in range(3):
        segment = segments.number(index, like)
        assert segment.length.shape == (2,)
        ends += [float(segment.t[0]), float(shift_time(segment.end, 2.0)[0])]
    grid = segments.grid().tolist()
    assert ends == pytest.approx([grid[0], grid[1], grid[1], grid[2], grid[2], 0], abs=1e-6)
    torch.testing.assert_close(Segments(5, 1.0, 3.0).grid(), full_grid(5, 3.0))


def gaussian_teacher(reference):
    """The exact velocity of data N(center, std^2 I)."""
    center, variance = reference["teacher_center"].reshape(1, -1, 1, 1), reference["teacher_std"].square()

    def model(x, t):
        time = t.reshape(-1, 1, 1, 1)
        residual = x - (1 - time) * center
        gain = (1 - time) * variance / ((1 - time) ** 2 * variance + time**2)
        return mean_velocity(x, t, center + gain * residual)

    return model


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_segment_is_the_reference_s(reference, index):
    given = {name: reference[f"imit{index}_{name}"] for name in ("t_src", "segment", "student_uniform", "loss")}
    share = float(reference[f"imit{index}_teacher_ratio"])
    u = mixture(reference, "u")
    means = u.means.clone().requires_grad_()
    segment = Segment(given["t_src"], given["segment"])
    predicted = type(u)(means, u.log_weights, u.variance)
    policy = POLICIES["gm"](predicted, reference["x_src"], segment)
    asked = []

    def teacher(x, t):
        asked.append(t)
        return gaussian_teacher(reference)(x, t)

    objective = Imitation(Segments(1), data_free=True, warmup=int(share > 0)).taught(teacher)
    teacher_uniform = reference[f"imit{index}_teacher_uniform"].unsqueeze(1)
    places = given["student_uniform"].unsqueeze(1), teacher_uniform, torch.zeros(4, 1, 0)
    draws = ImitationDraws(given["t_src"], torch.zeros_like(reference["x_src"]), *places, share)
    loss, end = objective.segment_loss(policy, reference["x_src"], segment, draws, 0)
    loss.mean().backward()
    torch.testing.assert_close(torch.cat(asked), reference[f"imit{index}_times"], **TOLERANCE)
    torch.testing.assert_close(loss.mean(), given["loss"].squeeze(), **TOLERANCE)
    torch.testing.assert_close(means.grad, reference[f"imit{index}_grad_means"], **TOLERANCE)
    torch.testing.assert_close(end, reference[f"imit{index}_x_end"], **TOLERANCE)


def draws_of(objective, count=6, seed=0, step=0):
    stream = torch.Generator().manual_seed(seed)
    t = torch.rand(count, generator=stream, dtype=torch.float64) * 0.99 + 0.005
    start = Draws(t, torch.randn(count, 3, 2, 1, generator=stream))
    draws = objective.draw(start, torch.Generator().manual_seed(seed), step)
    return each_tensor(draws, lambda tensor: tensor.double())


def pairs_of(draws):
    return Pairs(torch.zeros_like(draws.noise), draws.noise)


@pytest.mark.parametrize(
    "settings",
    [{}, {"states": 3}, {"data_free": True}, {"data_free": True, "states": 1, "substeps": 32}],
    ids=str,
)
def test_an_exact_student_has_no_loss(settings):
    predict, velocity = exact_student(CENTERS, 0.3, WEIGHTS)
    objective = Imitation(Segments(2, 0.5, 2.0), components=4, dropout=0.0, **settings)
    draws = draws_of(objective)
    assert float(objective.taught(velocity).loss(predict, pairs_of(draws), draws).max()) < 1e-10
    # of a velocity that is wrong by 1 everywhere; data-free, the weights of the segments sum to 1
    wrong = objective.taught(lambda x, t: velocity(x, t) + 1).loss(predict, pairs_of(draws), draws)
    torch.testing.assert_close(wrong, torch.ones_like(wrong), atol=1e-4, rtol=0)


def test_left_out_components_change_the_way_but_not_what_is_learnt_from():
    """Where components are left out, an exact student is asked at other points, and is exact there too."""
    predict, velocity = exact_student(CENTERS, 0.3, WEIGHTS)
    asked = []

    def teacher(x, t):
        asked.append(x)
        return velocity(x, t)

    for dropout in (0.0, 0.6):
        objective = Imitation(Segments(1), components=4, dropout=dropout).taught(teacher)
        draws = draws_of(objective)
        assert float(objective.loss(predict, pairs_of(draws), draws).max()) < 1e-10
    assert not torch.allclose(asked[1], asked[3])


def test_states_lie_within_the_segment_and_the_shares_sum_to_it():
    objective = Imitation(Segments(2), states=4, warmup=10, window=8)
    segment = objective.segments.around(torch.linspace(0.01, 1, 20))
    for step, share in ((0, 1.0), (3, 0.7), (10, 0.0), (50, 0.0)):
        draws = draws_of(objective, 20, step=step)
        assert draws.share == pytest.approx(share)
        ways = objective.ways(segment, draws)
        free = segment.length - objective.window_length(segment)
        assert bool((ways.student >= 0).all()) and bool((ways.teacher >= 0).all())
        torch.testing.assert_close(ways.teacher.sum(1).float(), share * free)
        assert bool((ways.student.sum(1) <= (1 - share) * free + 1e-6).all())
    torch.testing.assert_close(objective.window_length(segment), segment.length * 8 / 64)


def test_a_student_led_by_its_teacher_alone_is_asked_on_the_teacher_s_way():
    """At share 1 the points follow the teacher's straight steps, whatever the student predicts."""
    predict, _ = exact_student(CENTERS, 0.3, WEIGHTS)
    asked = []

    def teacher(x, t):
        asked.append((x, t))
        return torch.ones_like(x)

    objective = Imitation(Segments(1), warmup=10, states=3, substeps=32).taught(teacher)
    draws = draws_of(objective)
    objective.loss(predict, pairs_of(draws), draws)
    for x, t in asked:
        expected = draws.noise - (1 - t).reshape(-1, 1, 1, 1)
        torch.testing.assert_close(x, expected)


def test_the_window_is_a_mean_velocity():
    """Of a teacher whose velocity is the student's mean one over the window."""
    predict, velocity = exact_student(CENTERS, 0.3, WEIGHTS)
    objective = Imitation(Segments(1), window=16, states=1, dropout=0.0)
    draws = draws_of(objective)

    def teacher(x, t):
        policy = POLICIES["gm"](predict(draws.noise, torch.ones_like(t)), draws.noise, Segment(torch.ones_like(t), t))
        end = x
        for part in range(16):
            r = (t - part / 128).clamp(min=0)
            end = end - policy.velocity(end, r) * (1 / 128)
        return (x - end) * 8

    assert float(objective.taught(teacher).loss(predict, pairs_of(draws), draws).max()) < 1e-8
    assert float(objective.taught(velocity).loss(predict, pairs_of(draws), draws).max()) > 1e-4


def test_data_free_asks_no_data_and_walks_all_segments():
    predict, velocity = exact_student(CENTERS, 0.3, WEIGHTS)
    called = []

    def student(x, t):
        called.append(float(t[0]))
        return predict(x, t)

    objective = Imitation(Segments(3, 0.5), data_free=True).taught(velocity)
    draws = draws_of(objective)
    nothing = Pairs(torch.full_like(draws.noise, float("nan")), draws.noise)
    assert bool(torch.isfinite(objective.loss(student, nothing, draws)).all())
    assert called == pytest.approx(objective.segments.grid()[:-1].tolist())


@pytest.mark.parametrize("data_free", [False, True])
@pytest.mark.parametrize("segments", [Segments(1), Segments(3, 0.3), Segments(40, 0.5, 2.0)], ids=str)
@pytest.mark.parametrize(("window", "step"), [(0, 10), (3, 10), (100, 10), (0, 4), (3, 4), (0, 0)])
def test_rolls_are_cut_into_as_many_sub_steps_as_the_longest_needs(monkeypatch, data_free, segments, window, step):
    """The bound that is known without asking the device is one, and not far from the longest that occurs."""
    from gmtool.flow import imitation

    predict, velocity = exact_student(CENTERS, 0.3, WEIGHTS)
    objective = Imitation(segments, window=window, warmup=10, data_free=data_free).taught(velocity)
    draws = draws_of(objective, count=200, step=step)
    lengths = []

    def checked(start, end, shift, substeps, longest):
        needed = int(((start - end) * substeps).round().max())
        lengths.append((needed, len(roll_grid(start, end, shift, substeps, longest)) - 1))
        return roll_grid(start, end, shift, substeps, longest)

    monkeypatch.setattr(imitation, "roll_grid", checked)
    objective.loss(predict, pairs_of(draws), draws)
    assert len(lengths) > 1
    assert all(max(1, needed) <= taken for needed, taken in lengths)
    assert max(needed for needed, _ in lengths) >= 0.6 * max(taken for _, taken in lengths) - 1


def test_what_is_missing_is_said():
    predict, _ = exact_student(CENTERS, 0.3, WEIGHTS)
    objective = Imitation(Segments(1))
    draws = draws_of(objective)
    with pytest.raises(ValueError, match="teacher"):
        objective.loss(predict, pairs_of(draws), draws)
