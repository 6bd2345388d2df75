"""Modes that are learnt badly weigh more: the weights, their limits, their memory, and a run that keeps them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import Small
from user import Stop

from gmtool.distributed import World
from gmtool.errors import UserError
from gmtool.progress import Progress
from gmtool.stages.train.config import TrainConfig
from gmtool.stages.train.run import train
from gmtool.training.focal import KEPT, ModeLosses

TRAINING = TrainConfig(
    objective="mm-fm", focal=2.0, steps=6, batch_size=16, save_every=3, preview_every=0, device="cpu"
)


def test_weights_are_ratios_of_losses_to_a_power_within_limits() -> None:
    focal = ModeLosses(5, 2.0)
    every = torch.arange(5)
    assert focal.weights(every).tolist() == [1.0] * 5
    focal.update(torch.tensor([0, 1, 1, 2, 3]), torch.tensor([1.0, 1.0, 1.4, 0.2, 2.6]), World())
    # means 1, 1.2, 0.2, 2.6, of mean 1.25; mode 4 has not been seen
    expected = [(1 / 1.25) ** 2, (1.2 / 1.25) ** 2, 0.3, 3.0, 1.0]
    assert focal.weights(every).tolist() == pytest.approx(expected, rel=1e-5)
    assert focal.weights(torch.tensor([3, 0, 3])).tolist() == pytest.approx([3.0, expected[0], 3.0], rel=1e-5)


def test_a_mean_forgets_and_passes_over_what_is_not_finite() -> None:
    focal = ModeLosses(1, 1.0)
    one = torch.zeros(1, dtype=torch.long)
    focal.update(one, torch.tensor([5.0]), World())
    for value in (float("nan"), float("inf")):
        focal.update(one, torch.tensor([value]), World())
    assert float(focal.totals / focal.counts) == 5
    focal.update(one.expand(200), torch.ones(200), World())
    left = KEPT**200
    total = (1 - left) / (1 - KEPT) + left * 5
    count = (1 - left) / (1 - KEPT) + left
    assert float(focal.totals / focal.counts) == pytest.approx(total / count)


def test_a_resumed_run_is_the_uninterrupted_one(small: Small, tmp_path: Path) -> None:
    train(small.latents("classes"), tmp_path / "whole", TRAINING, Progress())
    with pytest.raises(KeyboardInterrupt):
        train(small.latents("classes"), tmp_path / "cut", TRAINING, Stop(4))
    train(small.latents("classes"), tmp_path / "cut", TRAINING, Progress())
    for name in ("model.safetensors", "focal.safetensors"):
        first, second = (load_file(tmp_path / run / "checkpoints/step-00000006" / name) for run in ("whole", "cut"))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert (first["counts"] > 0).any()


def test_the_weights_change_the_gradient_but_not_the_first_step(small: Small, tmp_path: Path) -> None:
    for name, focal in (("focal", 2.0), ("plain", 0.0)):
        train(
            small.latents("classes"), tmp_path / name, replace(TRAINING, focal=focal, save_every=1, keep=6), Progress()
        )

    def same(step: int) -> bool:
        first, second = (
            load_file(tmp_path / run / f"checkpoints/step-0000000{step}" / "model.safetensors")
            for run in ("focal", "plain")
        )
        return all(torch.equal(first[key], second[key]) for key in first)

    assert same(1) and not same(6)


def test_what_cannot_be_weighed_is_refused(small: Small, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--focal compares losses by ratio, and that of gm-kl may be negative"):
        replace(TRAINING, objective="gm-kl")
    with pytest.raises(UserError, match="--focal weighs modes, and this run knows none: take --source gmm"):
        train(small.latents("classes"), tmp_path / "run", replace(TRAINING, objective="fm"), Progress())
    assert not (tmp_path / "run").exists()
