from dataclasses import replace
from typing import Any

import pytest
import torch
from stepping import Losses, small_stepper, stepper_for, with_losses
from torch import Tensor

from gmtool.errors import MachineError, UserError
from gmtool.flow.source import ModeStatistics
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.training.micro_batch import choose_micro_batch, divisors, largest_that_fits
from gmtool.training.settings import LoopSettings
from gmtool.training.state import TrainState
from gmtool.training.step import Stepper, StepResult
from gmtool.training.task import Batch, Forward, Prepared

CPU = torch.device("cpu")
PLAIN: dict[str, Any] = {"lr": 1e-2, "warmup": 0}
TRANSPORT = {**PLAIN, "source": "gmm", "coupling": "batch-ot"}
MIXTURE = {**PLAIN, "objective": "gm-kl"}
UNION = {**PLAIN, "objective": "gm-kl", "source": "gmm", "mode_mean": False}
BASE = DiTArchitecture((2, 2, 2), depth=1, width=16, heads=2, classes=3)
CASES = {
    "fm": (PLAIN, BASE),
    "transport": (TRANSPORT, BASE),
    "mixture": (MIXTURE, replace(BASE, components=2, spectral=1)),
    "union": (UNION, replace(BASE, components=2, modes=2)),
}


def stepper_of(case: str, size: int | None = None) -> Stepper:
    settings, architecture = CASES[case]
    return small_stepper(architecture, settings, size)


def batch(count: int) -> Batch:
    draw = torch.Generator().manual_seed(3)

    def normal() -> Tensor:
        return torch.randn(count, 2, 2, 2, generator=draw)

    labels = torch.arange(count)
    return Batch(normal(), labels % 3, labels % 2, ModeStatistics(normal(), normal().abs() + 0.5))


def step(case: str, size: int | None) -> tuple[StepResult, TrainState]:
    stepper = stepper_of(case, size)
    return stepper.take(batch(12), 0, 0), stepper.state


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1, 4, 6])
def test_a_step_in_parts_is_the_step(case: str, size: int) -> None:
    """The same losses of the same numbers, and the same gradient, to rounding."""
    whole, first = step(case, None)
    parts, second = step(case, size)
    torch.testing.assert_close(parts.loss, whole.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.quarters, whole.quarters, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(parts.norm, whole.norm, atol=1e-6, rtol=1e-5)
    assert whole.norm > 1e-3
    for one, two in zip(first.network.parameters(), second.network.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, atol=1e-6, rtol=1e-4)


def test_all_micro_batches_but_the_last_are_held_back() -> None:
    """The wrapper of several processes exchanges gradients once per step."""
    held: list[bool] = []
    now = [False]

    class Hold:
        def __enter__(self) -> None:
            now[0] = True

        def __exit__(self, *_: object) -> None:
            now[0] = False

    stepper = stepper_of("fm", 4)
    state = stepper.state

    def forward(*arguments: object) -> object:
        held.append(now[0])
        return state.network(*arguments)

    replace(stepper, state=replace(state, forward=forward, hold=Hold)).take(batch(12), 0, 0)
    assert held == [True, True, False]


def at_most(limit: int, stepper: Stepper, seen: list[int]) -> Stepper:
    """A stepper on a device whose memory holds ``limit`` samples at once."""

    def alter(losses: Losses, forward: Forward, prepared: Prepared) -> Tensor:
        seen.append(len(prepared))
        if len(prepared) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return losses(forward, prepared)

    return with_losses(stepper, alter)


@pytest.mark.parametrize("case", ["fm", "union"])
@pytest.mark.parametrize(("limit", "largest"), [(12, 12), (11, 6), (5, 4), (1, 1)])
def test_auto_takes_the_largest_that_fits(case: str, limit: int, largest: int) -> None:
    seen: list[int] = []
    stepper = at_most(limit, stepper_of(case), seen)
    network = stepper.state.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert largest_that_fits(stepper, 12, CPU) == largest
    assert set(seen) == {divisor for divisor in divisors(12) if divisor >= largest}
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert stepper.state.optimizer.state() == {}


@pytest.mark.parametrize("lighter", ["a smaller --model", "a smaller teacher"])
def test_a_model_that_never_fits(lighter: str) -> None:
    with pytest.raises(MachineError, match=f"a single image does not fit on the GPU: use {lighter}"):
        largest_that_fits(at_most(0, replace(stepper_of("fm"), lighter=lighter), []), 12, CPU)


def test_other_errors_of_a_trial_are_not_hidden() -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("another")

    with pytest.raises(RuntimeError, match="another"):
        largest_that_fits(with_losses(stepper_of("fm"), broken), 12, CPU)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDNN_STATUS_ALLOC_FAILED when calling cudnnCreate")])
def test_memory_ends_in_other_words_too(error: Exception) -> None:
    def broken(*_: object) -> Tensor:
        raise error

    with pytest.raises(MachineError, match="does not fit"):
        largest_that_fits(with_losses(stepper_of("fm"), broken), 12, CPU)


@pytest.mark.parametrize(("size", "words"), [(12, "--micro-batch 12: try --micro-batch 6"), (1, "1: use another")])
def test_out_of_memory_names_the_micro_batch_to_try(size: int, words: str) -> None:
    with pytest.raises(MachineError, match=words):
        at_most(0, replace(stepper_of("fm", size), lighter="another"), []).take(batch(12), 0, 0)


def test_what_is_asked_is_taken() -> None:
    stepper = stepper_of("fm")
    assert choose_micro_batch(stepper, "auto", 12, CPU) == 12
    assert choose_micro_batch(stepper, "3", 12, CPU) == 3
    with pytest.raises(UserError, match="--micro-batch 5 does not divide the 12 images of a step: use 4"):
        choose_micro_batch(stepper, "5", 12, CPU)
    with pytest.raises(UserError, match="--micro-batch 99 does not divide the 12 images of a step: use 12"):
        choose_micro_batch(stepper, "99", 12, CPU)


@pytest.mark.parametrize("word", ["0", "-4", "many", "2.5", ""])
def test_words_that_are_no_micro_batch(word: str) -> None:
    with pytest.raises(UserError, match="--micro-batch is a number of images or auto"):
        LoopSettings(micro_batch=word)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_fits_on_the_gpu() -> None:
    device = torch.device("cuda")
    network = build_network(DiTArchitecture((4, 16, 16), depth=12, width=768, heads=12), 0).to(device)
    stepper = stepper_for(network, PLAIN)
    size = largest_that_fits(stepper, 2048, device)
    assert 1 <= size < 2048
    taken = replace(stepper, micro_batch=size).take(Batch(torch.randn(2048, 4, 16, 16, device=device)), 0, 0)
    assert not taken.skipped
