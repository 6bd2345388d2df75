import itertools
import math

import pytest
import torch
from scipy import stats

from gmtool.flow.times import TrainingTimes, expand, full_grid, rae_grid, shift_for, shift_time, sub_grid


def test_shift_is_the_identity_at_one_and_fixes_both_ends():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_time(t, 1.0), t)
    shifted = shift_time(t, 6.93)
    assert shifted[0] == 0 and shifted[-1] == 1
    assert (shifted[1:-1] > t[1:-1]).all()


def test_shifts_compose_by_multiplication():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_time(shift_time(t, 2.0), 3.0), shift_time(t, 6.0))


def test_shift_of_the_published_sizes():
    assert shift_for(4 * 32 * 32) == 1
    assert shift_for(768 * 16 * 16) == pytest.approx(math.sqrt(48))
    assert shift_for(64) == 1


def test_grid_begins_at_one_ends_at_zero_and_falls():
    for shift in (1.0, 3.0, 6.93):
        grid = full_grid(7, shift)
        assert len(grid) == 8 and grid[0] == 1 and grid[-1] == 0
        assert (grid[1:] < grid[:-1]).all()


def test_training_times_have_their_distribution():
    draw = torch.Generator().manual_seed(0)
    logit = torch.logit(TrainingTimes().draw(20_000, draw).double())
    assert stats.kstest(logit.numpy(), "norm").pvalue > 1e-3
    uniform = TrainingTimes("uniform").draw(20_000, draw)
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3
    shifted = TrainingTimes(shift=3.0).draw(20_000, draw)
    back = torch.logit(shift_time(shifted.double(), 1 / 3))
    assert stats.kstest(back.numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("distribution", ["uniform", "logit-normal"])
def test_quartiles_hold_a_quarter_of_the_times_each(distribution):
    for shift in (1.0, 6.93):
        times = TrainingTimes(distribution, shift)
        drawn = times.draw(40_000, torch.Generator().manual_seed(1))
        counts = torch.bucketize(drawn, times.quartiles()).bincount(minlength=4)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("shift", [1.0, 2.5])
@pytest.mark.parametrize("make", [full_grid, rae_grid])
def test_sub_steps_of_a_grid_are_the_finer_grid(make, shift):
    """Between two neighbours of a grid of 4 intervals lie the points of the grid of 12."""
    coarse, fine = make(4, shift).tolist(), make(12, shift).tolist()
    for i, (t, s) in enumerate(itertools.pairwise(coarse)):
        assert sub_grid(t, s, 3, shift) == pytest.approx(fine[3 * i : 3 * i + 4], abs=1e-14)
        assert sub_grid(t, s, 3, shift)[::3] == [t, s]


def test_expand_takes_the_type_of_x():
    x = torch.zeros(3, 2, dtype=torch.float32)
    assert torch.equal(expand(0.5, x), torch.full((3,), 0.5))
