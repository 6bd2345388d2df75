"""The layer where network, method and solver meet: an exact network draws the data, and starts where training does."""

from dataclasses import dataclass, replace
from math import sqrt
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from toys import exact_posterior

from gmtool.artifacts.method_record import MethodRecord
from gmtool.artifacts.run import LatentStatistics
from gmtool.flow.source import ModeMixture
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions
from gmtool.nn.conditioning import Conditioning
from gmtool.sampling.model import TrainedModel
from gmtool.sampling.plan import SamplePlan, make_plan
from gmtool.sampling.sampler import draw_start, evaluations_of, generate, unguided_field
from gmtool.sampling.settings import SamplingSettings
from gmtool.streams import SampleNoise, generator
from gmtool.training.method import resolve_method
from gmtool.training.settings import MethodSettings
from gmtool.training.task import Batch, Task

SHAPE, CLASSES, MODES = (2, 1, 1), 2, 3
WEIGHTS = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.15, 0.75]])
"""p(mode | class)."""
MIXTURE = ModeMixture(
    weights=torch.tensor([0.3, 0.225, 0.475]),
    means=torch.tensor([[-20.0, 0.0], [20.0, 5.0], [0.0, 30.0]]).reshape(MODES, *SHAPE),
    stds=torch.tensor([[1.0, 2.0], [0.5, 0.25], [1.5, 1.0]]).reshape(MODES, *SHAPE),
)
"""The fitted modes, far apart, so that a sample tells its mode."""
STATISTICS = LatentStatistics(
    torch.tensor([3.0, -1.0]).reshape(SHAPE), torch.tensor([0.5, 2.0]).reshape(SHAPE), WEIGHTS
)


@dataclass(frozen=True)
class Inside:
    """The data of each mode in its whitened coordinates, which the fit has not caught: a mixture of two Gaussians.

    centers (K, 2, C), weights (K, 2), std (K,).
    """

    centers: Tensor
    weights: Tensor
    std: Tensor

    @property
    def mean(self) -> Tensor:
        """(K, C)."""
        return torch.einsum("km,kmc->kc", self.weights, self.centers)

    @property
    def variance(self) -> Tensor:
        """(K, C)."""
        second = torch.einsum("km,kmc->kc", self.weights, self.centers.square())
        return second - self.mean.square() + self.std.square()[:, None]


INSIDE = Inside(
    centers=torch.tensor([[[0.3, -0.2], [0.3, -0.2]], [[-1.0, 0.5], [0.8, -0.4]], [[0.0, 1.0], [-0.5, -0.5]]]),
    weights=torch.tensor([[0.5, 0.5], [0.4, 0.6], [0.7, 0.3]]),
    std=torch.tensor([1.3, 0.5, 0.7]),
)


class ExactNetwork(nn.Module):
    """What a perfect union predicts: the posterior, over the velocity, of the data in its mode's coordinates."""

    spectrum = None
    architecture = SimpleNamespace(shape=SHAPE)

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> GaussianMixture:
        modes = conditions.modes
        assert modes is not None and conditions.classes is not None
        assert torch.equal(conditions.context, MIXTURE.means[modes])
        posterior = exact_posterior(INSIDE.centers[modes], INSIDE.std[modes], INSIDE.weights[modes])
        time = t.reshape(-1, 1, 1, 1)
        return posterior(x_t, t).mixture.affine(-1 / time, x_t / time)  # u = (x_t - x) / t


def record_of(**settings: str) -> MethodRecord:
    return resolve_method(MethodSettings(**settings), SHAPE, CLASSES, "a mixture")[0]


UNION = record_of(objective="gm-kl", source="gmm", condition="class")
MM_FM = record_of(objective="mm-fm", condition="class")


def model_of(record: MethodRecord) -> TrainedModel:
    """An exact network, whose method is that of a record, in memory."""
    conditioning = Conditioning(CLASSES, MODES if record.sees_modes else 0, record.mode_mean, record.hides)
    return TrainedModel(
        ExactNetwork(), record.method, conditioning, STATISTICS, MIXTURE, torch.device("cpu"), torch.float32
    )


def plan_of(**settings: object) -> SamplePlan:
    return make_plan(SamplingSettings(**settings), UNION, spectral=0, seed=7)


def modes_in(latents: Tensor) -> tuple[Tensor, Tensor]:
    """The mode (B,) that each sample lies nearest to, and the samples in its whitened coordinates, (B, C)."""
    x = STATISTICS.normalise(latents)
    modes = (x[:, None] - MIXTURE.means).flatten(2).square().sum(2).argmin(1)
    known = MIXTURE.at(modes)
    return modes, ((x - known.mean) / known.std).flatten(1)


SIGMAS = 4.5
"""Standard errors within which every estimate lies; a normal one is outside once in 150,000."""


@pytest.mark.parametrize(
    "settings",
    [{"solver": "gm-ode", "steps": 8}, {"solver": "gm-sde", "steps": 4, "order": 1}, {"solver": "gm-sde", "steps": 8}],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_an_exact_union_draws_the_data(settings: dict[str, object]) -> None:
    count = 4000
    classes = torch.arange(count) % CLASSES
    latents = generate(model_of(UNION), plan_of(**settings), range(count), classes)
    assert latents.shape == (count, *SHAPE) and latents.dtype == torch.float32
    modes, inside = modes_in(latents)
    for label, weights in enumerate(WEIGHTS.tolist()):
        counts = torch.bincount(modes[classes == label], minlength=MODES) / (count / CLASSES)
        for mode, weight in enumerate(weights):
            assert counts[mode].item() == pytest.approx(
                weight, abs=SIGMAS * sqrt(weight * (1 - weight) * CLASSES / count)
            )
            mine = inside[(classes == label) & (modes == mode)]
            mean, variance = INSIDE.mean[mode], INSIDE.variance[mode]
            error = (mine.mean(0) - mean).abs() / (variance / len(mine)).sqrt()
            assert (error < SIGMAS).all(), (label, mode, error)
            # an upper bound of the standard error: the tails of these mixtures are lighter than a Gaussian's
            error = (mine.var(0) - variance).abs() / (variance * sqrt(2 / len(mine)))
            assert (error < SIGMAS).all(), (label, mode, error)


def test_modes_that_are_asked_for_are_those_of_the_samples() -> None:
    count = 30
    asked = torch.arange(count) % MODES
    classes = torch.zeros(count, dtype=torch.long)
    latents = generate(model_of(UNION), plan_of(solver="gm-ode", steps=4), range(count), classes, asked)
    assert torch.equal(modes_in(latents)[0], asked)


def test_a_run_without_classes_has_one_row_of_weights() -> None:
    count = 2000
    model = replace(model_of(UNION), statistics=replace(STATISTICS, mode_weights=WEIGHTS[1:]))
    classes = torch.arange(count) % CLASSES
    counts = torch.bincount(modes_in(generate(model, plan_of(steps=2), range(count), classes))[0], minlength=MODES)
    error = (counts / count - WEIGHTS[1]).abs() / (WEIGHTS[1] * (1 - WEIGHTS[1]) / count).sqrt()
    assert (error < SIGMAS).all()


def test_a_sample_depends_on_its_number_and_label_alone() -> None:
    model, classes = model_of(UNION), torch.tensor([0, 1, 1, 0, 1])
    for settings in ({"solver": "gm-ode", "steps": 3}, {"solver": "gm-sde", "steps": 3}):
        plan = plan_of(**settings)
        together = generate(model, plan, range(5), classes)
        apart = torch.cat([generate(model, plan, [index], classes[index : index + 1]) for index in range(5)])
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)


def test_the_field_is_that_of_the_data_in_normalised_latents() -> None:
    """At t = 1 E[u | x] is z - E[x]; in latents both are those of the mode: s_k (z - E[y])."""
    count = 6
    asked = torch.arange(count) % MODES
    field, start = unguided_field(model_of(UNION), 7, range(count), torch.zeros(count, dtype=torch.long), asked)
    known = MIXTURE.at(asked)
    noise = (start - known.mean) / known.std
    expected = known.std * (noise - INSIDE.mean[asked].reshape(count, *SHAPE))
    torch.testing.assert_close(field(start, torch.ones(count)), expected, rtol=1e-4, atol=1e-4)


class GivenNoise(SampleNoise):
    """The same normal numbers each time."""

    def __init__(self, normal: Tensor) -> None:
        super().__init__(0, range(len(normal)))
        self._given = normal

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        assert tuple(shape) == self._given.shape[1:]
        return self._given


@pytest.mark.parametrize("record", [MM_FM, UNION], ids=["mm-fm", "union"])
def test_samples_start_where_training_does(record: MethodRecord) -> None:
    """From the same noise and modes; and what training learns to reach, sampling gives back as the data."""
    model, count, draws = model_of(record), 8, generator("test")
    task = Task(record.method, model.conditioning, dropout=0.0, shape=SHAPE)
    classes, modes = torch.arange(count) % CLASSES, torch.arange(count) % MODES
    known, x = MIXTURE.at(modes), torch.randn(count, *SHAPE, generator=draws)
    step = task.draw(count, draws)
    prepared = task.prepare(Batch(x, classes, modes, known, known.mean if record.mode_mean else None), step)
    start = draw_start(model, GivenNoise(step.method.noise), classes, modes)
    assert torch.equal(start.x, prepared.pairs.z)
    torch.testing.assert_close(record.method.finish(prepared.pairs.x, start.source_modes), x, rtol=1e-4, atol=1e-4)
    for name in ("classes", "modes", "context"):
        torch.testing.assert_close(getattr(start.conditions, name), getattr(prepared.conditions, name))
    if record is MM_FM:
        torch.testing.assert_close(start.x, known.mean + known.std * step.method.noise)


class CountingNetwork(ExactNetwork):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> GaussianMixture:
        self.asked += 1
        return super().forward(x_t, t, conditions)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"solver": "euler", "steps": 5}, 5),
        ({"solver": "euler", "steps": 5, "protocol": "rae"}, 4),
        ({"solver": "heun", "steps": 5}, 5),
        ({"solver": "unipc", "steps": 4}, 4),
        ({"solver": "gm-ode", "steps": 3}, 3),
        ({"solver": "gm-sde", "steps": 3, "order": 1}, 3),
        ({"solver": "heun", "steps": 4, "guidance": "cfg"}, 8),
        ({"solver": "gm-ode", "steps": 4, "guidance": "prob"}, 8),
        ({"solver": "gm-ode", "steps": 4, "guidance": "prob", "guidance_interval": "0.5,1"}, None),
        ({"solver": "heun", "steps": 5, "guidance": "cfg", "guidance_interval": "0,0.5"}, None),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_evaluations_are_those_that_are_made(settings: dict[str, object], expected: int | None) -> None:
    model = replace(model_of(UNION), network=CountingNetwork())
    plan = plan_of(**settings)
    generate(model, plan, range(2), torch.tensor([0, 1]))
    assert evaluations_of(plan) == model.network.asked
    if expected is None:  # guided at some of the times alone
        assert plan.steps < model.network.asked < 2 * plan.steps
    else:
        assert model.network.asked == expected
