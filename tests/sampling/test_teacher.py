"""A teacher's velocity: that of its run at every time, guided by a weaker run that is given the same labels."""

from dataclasses import replace

import pytest
import torch
from test_sampler import CLASSES, MIXTURE, MODES, SHAPE, UNION, model_of, plan_of
from torch import Tensor, nn
from toys import random_mixture

from gmtool.flow.times import EARLIEST
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions
from gmtool.nn.conditioning import Conditioning
from gmtool.sampling.teacher import Teacher

BATCH = 6


class Given(nn.Module):
    """A network that predicts a given mixture, and knows what it was asked for last."""

    asked: Conditions

    def __init__(self, predicted: GaussianMixture) -> None:
        super().__init__()
        self.predicted = predicted

    def forward(self, _x: Tensor, _t: Tensor, conditions: Conditions) -> GaussianMixture:
        self.asked = conditions
        return self.predicted


def in_float32(mixture: GaussianMixture) -> GaussianMixture:
    return GaussianMixture(mixture.means.float(), mixture.log_weights.float(), mixture.variance.float())


def conditions() -> Conditions:
    modes = torch.arange(BATCH) % MODES
    return Conditions(torch.arange(BATCH) % CLASSES, modes, MIXTURE.means[modes])


@pytest.mark.parametrize("t", [0.0, EARLIEST, 0.01, 0.5])
def test_an_unguided_velocity_is_exact_at_every_time(t: float) -> None:
    predicted = random_mixture(0, BATCH, 4, SHAPE[0], SHAPE[1:])
    network = Given(in_float32(predicted))
    teacher = Teacher(replace(model_of(UNION), network=network), plan_of(solver="gm-ode"), UNION.method)
    x = 3 * torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(0))
    velocity = teacher(conditions(), MIXTURE.at(torch.arange(BATCH) % MODES))(x, torch.full((BATCH,), t))
    torch.testing.assert_close(velocity.double(), predicted.mean(), rtol=1e-5, atol=1e-6)


def test_a_weaker_run_is_asked_for_the_same_labels() -> None:
    """Each label by its name: one that knows classes alone, or modes alone, is given those."""
    predicted, asked = in_float32(random_mixture(0, BATCH, 4, SHAPE[0], SHAPE[1:])), conditions()
    for classes, modes in ((CLASSES, 0), (0, MODES), (CLASSES, MODES)):
        weaker = replace(
            model_of(UNION), network=Given(predicted), conditioning=Conditioning(classes, modes, False, "none")
        )
        model = replace(model_of(UNION), network=Given(predicted), weaker=weaker)
        plan = replace(plan_of(solver="gm-ode"), guidance="auto", scale=0.1)
        Teacher(model, plan, UNION.method)(asked, None)(torch.zeros(BATCH, *SHAPE), torch.full((BATCH,), 0.5))
        seen = weaker.network.asked
        assert seen.classes is (asked.classes if classes else None) and seen.modes is (asked.modes if modes else None)
