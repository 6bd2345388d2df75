"""The figures that a step reports."""

import pytest
import torch
from stepping import small_stepper

from gmtool.nn.dit import DiTArchitecture
from gmtool.training.step import StepResult, by_quarter
from gmtool.training.task import Batch


def taken(quarters: list[list[float]]) -> StepResult:
    return StepResult(3, 0.1, torch.tensor(2.0), torch.tensor(1.0), torch.tensor(False), torch.tensor(quarters))


def test_losses_are_told_apart_by_time() -> None:
    t = torch.tensor([0.05, 0.9, 0.3, 0.2, 0.6])
    quarters = by_quarter(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), t, torch.tensor([0.25, 0.5, 0.75]))
    assert quarters.tolist() == [[9, 4, 16, 2], [2, 1, 1, 1]]


def test_a_loss_that_is_not_finite_stays_in_its_quarter() -> None:
    quarters = by_quarter(torch.tensor([float("nan"), 2.0]), torch.tensor([0.1, 0.9]), torch.tensor([0.25, 0.5, 0.75]))
    assert quarters[0, 0].isnan() and quarters[0, 1:].tolist() == [0, 0, 2]


def test_a_record_holds_the_mean_loss_of_each_quarter_with_data() -> None:
    record = taken([[9, 4, 0, 2], [2, 1, 0, 4]]).record()
    quarters = {name: value for name, value in record.items() if name.startswith("loss_q")}
    assert quarters == {"loss_q1": 4.5, "loss_q2": 4.0, "loss_q4": 0.5}


def test_the_quarters_of_a_step_add_up_to_its_loss() -> None:
    stepper = small_stepper(DiTArchitecture((2, 2, 2), depth=1, width=16, heads=2), {"time_shift": 3.0})
    result = stepper.take(Batch(torch.randn(64, 2, 2, 2)), step=0, seed=0)
    sums, counts = result.quarters
    assert counts.sum() == 64 and (counts > 4).all()
    assert sums.sum().item() / 64 == pytest.approx(result.loss.item(), rel=1e-6)
