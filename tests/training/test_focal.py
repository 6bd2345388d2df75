"""Modes that are learned badly weigh more: the weights, their limits, their memory, and a run that keeps them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import Small
from stepping import Losses, small_stepper, with_losses
from torch import Tensor
from user import Stop

from gmtool.distributed import World
from gmtool.errors import UserError
from gmtool.nn.dit import DiTArchitecture
from gmtool.progress import Progress
from gmtool.settings import changed, make
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.training.focal import DECAY, ModeLosses
from gmtool.training.task import Batch, Forward, Prepared

TRAINING = make(
    TrainConfig,
    {
        "objective": "mm-fm",
        "focal": 2.0,
        "steps": 6,
        "batch_size": 16,
        "save_every": 3,
        "preview_every": 0,
        "device": "cpu",
    },
)


def test_weights_are_normalised_ratios_of_losses_to_a_power_within_limits() -> None:
    focal = ModeLosses(5, 2.0, first_steps=1)
    every = torch.arange(5)
    focal.update(torch.tensor([0, 1, 1, 2, 3]), torch.tensor([1.0, 1.0, 1.4, 0.2, 2.6]), World())
    means = torch.tensor([1.0, 1.2, 0.2, 2.6, 1.0], dtype=torch.float64)  # mode 4 has not been seen
    raw = (means / means.mean()) ** 2
    expected = (raw / raw.mean()).clamp(0.3, 3.0)
    assert expected[2] == 0.3  # at the lower limit
    torch.testing.assert_close(focal.weights(every).double(), expected)
    torch.testing.assert_close(focal.weights(torch.tensor([3, 0, 3])).double(), expected[[3, 0, 3]])


def test_the_first_steps_weigh_alike_and_keep_plain_means() -> None:
    focal = ModeLosses(2, 2.0, first_steps=3)
    for values in ([5.0, 1.0], [2.0, 3.0], [2.0, 2.0]):
        assert focal.weights(torch.arange(2)).tolist() == [1.0, 1.0]
        focal.update(torch.zeros(2, dtype=torch.long), torch.tensor(values), World())
    assert focal.losses.tolist() == [2.5, 1.0]
    assert focal.weights(torch.arange(2)).tolist() != [1.0, 1.0]
    focal.update(torch.tensor([0, 0]), torch.tensor([1.0, 3.0]), World())  # once a step, whatever its samples
    assert focal.losses[0].item() == pytest.approx(DECAY * 2.5 + (1 - DECAY) * 2)
    focal.update(torch.tensor([1]), torch.tensor([4.0]), World())  # seen for the first time
    assert focal.losses[1].item() == 4


def test_a_loss_that_is_not_finite_is_passed_over() -> None:
    focal = ModeLosses(1, 1.0, first_steps=0)
    one = torch.zeros(1, dtype=torch.long)
    for value in (5.0, float("nan"), float("inf")):
        focal.update(one, torch.tensor([value]), World())
    assert focal.losses.item() == 5


def test_the_means_of_an_earlier_version_are_taken_over() -> None:
    focal = ModeLosses(3, 2.0)
    counts = torch.tensor([4.0, 0.0, 2.0], dtype=torch.float64)
    focal.load_state_dict({"totals": torch.tensor([8.0, 0.0, 1.0], dtype=torch.float64), "counts": counts})
    assert focal.losses.tolist() == [2.0, 1.0, 0.5]
    assert focal.weights(torch.arange(3)).tolist() != [1.0, 1.0, 1.0]


@pytest.mark.parametrize("micro_batch", [None, 4])
@pytest.mark.parametrize("first_steps", [0, 1])
def test_the_weights_enter_the_gradient_and_not_the_loss(first_steps: int, micro_batch: int | None) -> None:
    """The step is that of the mean of w_k times the loss; in the first steps, that of the mean of the loss alone."""
    architecture = DiTArchitecture((2, 2, 2), depth=1, width=16, heads=2)
    batch = Batch(torch.randn(12, 2, 2, 2, generator=torch.Generator().manual_seed(1)), modes=torch.arange(12) % 2)
    focal = ModeLosses(2, 2.0, first_steps)
    focal.losses.copy_(torch.tensor([1.0, 3.0]))
    # (1/2)^2 and (3/2)^2 by their mean of 5/4, the first at the lower limit
    weights = torch.ones(12) if first_steps else torch.tensor([0.3, 1.8])[batch.modes]

    def weighted(losses: Losses, forward: Forward, prepared: Prepared) -> Tensor:
        return weights * losses(forward, prepared)

    plain = small_stepper(architecture, {}, micro_batch)
    stepper = replace(plain, state=replace(plain.state, focal=focal))
    reference = with_losses(small_stepper(architecture, {}), weighted)
    taken, loss = stepper.take(batch, 0, 0), small_stepper(architecture, {}).take(batch, 0, 0).loss
    reference.take(batch, 0, 0)
    torch.testing.assert_close(taken.loss, loss)
    for parameter, expected in zip(
        stepper.state.network.parameters(), reference.state.network.parameters(), strict=True
    ):
        torch.testing.assert_close(parameter.grad, expected.grad)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(small: Small, tmp_path: Path) -> None:
    train(small.latents("classes"), tmp_path / "whole", TRAINING, Progress())
    with pytest.raises(KeyboardInterrupt):
        train(small.latents("classes"), tmp_path / "cut", TRAINING, Stop(4))
    train(small.latents("classes"), tmp_path / "cut", TRAINING, Progress())
    for name in ("model.safetensors", "focal.safetensors"):
        first, second = (load_file(tmp_path / run / "checkpoints/step-00000006" / name) for run in ("whole", "cut"))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert (first["counts"] > 0).any()
    assert first["steps"] == 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "gm-kl"}, "--focal compares losses by ratio"),
        (
            {"objective": "fm", "condition": "class"},
            "--focal weighs modes, and this run has none",
        ),
    ],
)
def test_where_it_cannot_be(settings, words, small: Small, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        train(small.latents("classes"), tmp_path / "run", changed(TRAINING, settings), Progress())
    assert not (tmp_path / "run").exists()
