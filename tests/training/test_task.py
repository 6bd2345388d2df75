"""The training loss: every allowed combination, and its expectation where that is known."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gmtool.artifacts.method_record import MethodRecord
from gmtool.errors import UserError
from gmtool.flow.coordinates import Whitened
from gmtool.flow.source import ModeStatistics
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiT, DiTArchitecture
from gmtool.streams import generator
from gmtool.training.method import resolve_method
from gmtool.training.settings import MethodSettings
from gmtool.training.task import Batch, task_of

SHAPE = (2, 2, 2)
CLASSES, MODES = 3, 5


def combinations() -> list[dict[str, str]]:
    """Every combination of the four axes that the settings allow."""
    axes = {
        "objective": ("fm", "gm-kl", "mm-fm"),
        "source": ("gaussian", "gmm"),
        "coupling": ("independent", "mode", "batch-ot"),
        "condition": ("none", "class", "mode"),
    }
    seen = []
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        try:
            MethodSettings(**settings)
        except UserError:
            continue
        seen.append(settings)
    return seen


def configure(**settings: Any) -> MethodRecord:
    """What settings come to for small latents in classes, with a mixture."""
    known = {"source": "gaussian", "coupling": "independent", "condition": "none"}
    return resolve_method(MethodSettings(**(known | settings)), SHAPE, CLASSES, "a mixture")[0]


def make_batch(record: MethodRecord, count: int, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    modes = torch.randint(MODES, (count,), generator=draw)
    mean, std = torch.randn(MODES, *SHAPE, generator=draw), torch.rand(MODES, *SHAPE, generator=draw) + 0.5
    return Batch(
        x=torch.randn(count, *SHAPE, generator=draw),
        classes=torch.arange(count) % CLASSES if record.condition == "class" else None,
        modes=modes,
        source_modes=ModeStatistics(mean[modes], std[modes]) if record.source == "gmm" else None,
        mode_mean=mean[modes] if record.mode_mean else None,
    )


def make_network(record: MethodRecord) -> DiT:
    architecture = DiTArchitecture(
        SHAPE,
        depth=1,
        width=16,
        heads=2,
        classes=CLASSES if record.condition == "class" else 0,
        modes=MODES if record.sees_modes else 0,
        context=SHAPE[0] if record.mode_mean else 0,
        components=3 if record.method.objective.mixture else 0,
    )
    return build_network(architecture, 0)


class Spy(DiT):
    """A network that records its inputs, and predicts a velocity or a mixture."""

    def __init__(self, architecture: DiTArchitecture, answer: Tensor | GaussianMixture | None = None) -> None:
        super().__init__(architecture)
        self.answer = answer
        self.points, self.times, self.conditions = torch.empty(0), torch.empty(0), Conditions()

    def forward(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor | GaussianMixture:
        self.points, self.times, self.conditions = x_t, t, conditions
        if self.answer is not None:
            return self.answer
        return super().forward(x_t, t, conditions)


def loss_of(network: DiT, batch: Batch, record: MethodRecord) -> Tensor:
    """The loss with random numbers that are always the same."""
    task = task_of(record, network)
    return task.losses(network, task.prepare(batch, task.draw(len(batch.x), generator(0, "test"))))


def test_there_are_the_combinations_that_the_design_has() -> None:
    """Pairs of source and coupling: 5 for fm, 2 for gm-kl, 1 for mm-fm; each with 3 conditions."""
    assert len(combinations()) == 3 * (5 + 2 + 1)


@pytest.mark.parametrize("settings", combinations(), ids=lambda shape: "-".join(shape.values()))
def test_every_combination_is_finite_and_trains_every_weight(settings: dict[str, str]) -> None:
    record = configure(**settings)
    network = make_network(record)
    with torch.no_grad():
        for parameter in network.parameters():  # zero weights stop the gradient of what is before them
            parameter.add_(0.1)
    loss = loss_of(network, make_batch(record, 16), record)
    assert loss.shape == (16,)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    loss.mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    again = loss_of(network, make_batch(record, 16), record)
    assert torch.equal(loss.detach(), again.detach())


def test_flow_matching_from_zero_is_the_mean_square_of_the_velocity() -> None:
    """With u = 0 predicted: E|z - x|^2 = 1 + E x^2 for a Gaussian source, E|mu - x|^2 + s^2 for a mode's."""
    record = configure()
    batch = make_batch(record, 4000)
    loss = loss_of(make_network(record), batch, record).mean()
    assert loss.item() == pytest.approx(1 + batch.x.square().mean().item(), rel=0.02)
    record = configure(source="gmm", coupling="mode")
    batch = make_batch(record, 4000)
    loss = loss_of(make_network(record), batch, record).mean()
    assert batch.source_modes is not None
    expected = (batch.source_modes.mean - batch.x).square().mean() + batch.source_modes.std.square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)


def test_batch_transport_lowers_the_loss() -> None:
    independent, transport = configure(), configure(coupling="batch-ot")
    batch, network = make_batch(independent, 200), make_network(independent)
    apart = loss_of(network, batch, independent).mean()
    paired = loss_of(network, batch, transport).mean()
    assert paired < 0.75 * apart


def test_points_are_on_the_path_to_the_mode() -> None:
    """x_t = (1 - t) x + t z, with z from the mode, of known mean and std."""
    record = configure(source="gmm", coupling="mode", time_distribution="uniform")
    mean, std, x = 3.0, 0.25, -2.0
    ones = torch.ones(20_000, *SHAPE)
    spy = Spy(DiTArchitecture(SHAPE, 1, 16, 2), torch.zeros_like(ones))
    loss_of(spy, Batch(x * ones, source_modes=ModeStatistics(mean * ones, std * ones)), record)
    time = spy.times.reshape(-1, 1, 1, 1)
    z = (spy.points - (1 - time) * x) / time
    late = z[spy.times > 0.1]
    assert late.mean().item() == pytest.approx(mean, abs=0.01)
    assert late.std().item() == pytest.approx(std, rel=0.02)
    assert spy.times.mean().item() == pytest.approx(0.5, abs=0.01)


def test_one_component_of_fixed_std_is_flow_matching() -> None:
    """K = 1, lambda = 1 (s = 0): |u_theta - u|^2 / (2 std^2) + log std, with u read off the point that was drawn."""
    record = configure(objective="gm-kl", transition_ratio=1.0)
    batch = make_batch(record, 64)
    means = torch.randn(64, 1, *SHAPE, generator=torch.Generator().manual_seed(5))
    variance = torch.full((64, 1, 1, 1, 1), 0.7)
    spy = Spy(
        DiTArchitecture(SHAPE, 1, 16, 2, components=1), GaussianMixture(means, torch.zeros(64, 1, 1, 2, 2), variance)
    )
    loss = loss_of(spy, batch, record)
    time = spy.times.reshape(-1, 1, 1, 1)
    velocity = (spy.points - batch.x) / time
    # the transition onto s = 0 is a point: its likelihood is that of x = x_t - t u, of std t std_u
    square = (means[:, 0] - velocity).square().flatten(1).mean(1)
    expected = square / (2 * 0.7) + 0.5 * torch.log(torch.tensor(0.7)) + spy.times.log()
    torch.testing.assert_close(loss, expected, atol=2e-3, rtol=2e-3)


def test_the_union_is_the_mixture_loss_in_the_modes_coordinates() -> None:
    union = configure(objective="gm-kl", source="gmm", coupling="mode", mode_mean=False)
    plain = configure(objective="gm-kl")
    batch = make_batch(union, 32)
    assert batch.source_modes is not None
    architecture = DiTArchitecture(SHAPE, 1, 16, 2, modes=MODES, components=3)
    network = build_network(architecture, 0)
    whitened = Batch(Whitened().enter(batch.x, batch.source_modes), modes=batch.modes)
    first = loss_of(network, batch, union)
    second = loss_of(network, whitened, plain)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("settings", "hidden"),
    [
        ({"condition": "class"}, "classes"),
        ({"condition": "mode"}, "modes"),
        ({"condition": "class", "objective": "gm-kl", "source": "gmm", "coupling": "mode"}, "classes"),
        ({"condition": "mode", "objective": "gm-kl", "source": "gmm", "coupling": "mode"}, None),
        ({"condition": "none", "objective": "gm-kl", "source": "gmm", "coupling": "mode"}, None),
    ],
)
def test_dropout_hides_the_condition_and_never_the_coordinates(settings: dict[str, str], hidden: str | None) -> None:
    record = configure(**settings, dropout=0.25)
    spy = Spy(make_network(record).architecture)
    batch = make_batch(record, 4000)
    loss_of(spy, batch, record)
    for name, count in (("classes", CLASSES), ("modes", MODES)):
        given, seen = getattr(batch, name), getattr(spy.conditions, name)
        if not getattr(spy.architecture, name):
            assert seen is None
            continue
        null = seen == count
        assert null.float().mean().item() == pytest.approx(0.25 if name == hidden else 0, abs=0.03)
        assert torch.equal(seen[~null], given[~null])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropout_of_none_and_of_all(share: float) -> None:
    record = configure(condition="class", dropout=share)
    spy = Spy(make_network(record).architecture)
    loss_of(spy, make_batch(record, 50), record)
    assert spy.conditions.classes is not None
    assert (spy.conditions.classes == CLASSES).float().mean().item() == share


def test_bfloat16_arithmetic_gives_nearly_the_same_loss() -> None:
    for objective in ("fm", "gm-kl"):
        record = configure(objective=objective)
        network, batch = make_network(record), make_batch(record, 64)
        exact = loss_of(network, batch, record)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = loss_of(network, batch, record)
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded.mean(), exact.mean(), atol=0.02, rtol=0.02)
