"""A student's first weights predict what its teacher does, and can learn apart."""

import pytest
import torch

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions
from gmtool.nn.build import build_network
from gmtool.nn.dit import DiTArchitecture
from gmtool.nn.ditdh import DiTDHArchitecture
from gmtool.nn.widen import begin_as

SHAPE = (3, 4, 2)
KINDS = {
    "dit": lambda **head: DiTArchitecture(SHAPE, 1, 16, 2, patch=2, **head),
    "ditdh": lambda **head: DiTDHArchitecture(SHAPE, 1, 16, 2, 1, 32, 2, patch=2, **head),
}


def trained(architecture):
    """A network none of whose weights is at its first value."""
    network = build_network(architecture, 0)
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=stream)
    return network


def student_of(teacher, after, spread):
    student = build_network(after, 2)
    before = teacher.architecture
    begin_as(student, teacher.state_dict(), before.head, after.head, torch.Generator().manual_seed(3), spread, 0.3)
    return student


def ask(network):
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return network(x, torch.linspace(0.1, 1, 5), Conditions())


@pytest.mark.parametrize("kind", KINDS)
def test_a_velocity_becomes_the_means_of_a_mixture(kind):
    teacher = trained(KINDS[kind]())
    u = ask(teacher)
    exact = ask(student_of(teacher, KINDS[kind](components=4), 0.0))
    torch.testing.assert_close(exact.means, u.unsqueeze(1).expand(-1, 4, -1, -1, -1))
    torch.testing.assert_close(exact.variance.sqrt().flatten(), torch.full((5,), 0.3))
    moved = ask(student_of(teacher, KINDS[kind](components=4), 0.5)).means - u.unsqueeze(1)
    torch.testing.assert_close(moved, moved[:1, ..., :1, :1].expand_as(moved))  # the same at every position and time
    assert float(moved[0, :, :, 0, 0].std()) == pytest.approx(0.5, abs=0.25)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [3, 6])
def test_a_mixture_stays_the_same_mixture(kind, more):
    teacher = trained(KINDS[kind](components=3))
    before, after = ask(teacher), ask(student_of(teacher, KINDS[kind](components=more), 0.0))
    torch.testing.assert_close(after.mean(), before.mean())
    torch.testing.assert_close(after.variance, before.variance)
    torch.testing.assert_close(after.means[:, :3], before.means)
    if more == 3:
        torch.testing.assert_close(after.log_weights, before.log_weights)
        spread = ask(student_of(teacher, KINDS[kind](components=more), 0.5))
        torch.testing.assert_close(spread.means, before.means)  # it has no copies


@pytest.mark.parametrize("kind", KINDS)
def test_a_velocity_becomes_several(kind):
    teacher = trained(KINDS[kind]())
    several = ask(student_of(teacher, KINDS[kind](velocities=3), 0.5))
    torch.testing.assert_close(several, ask(teacher).unsqueeze(1).expand(-1, 3, -1, -1, -1))
    assert not isinstance(several, GaussianMixture)


def test_other_networks_are_no_teachers():
    teacher = build_network(DiTArchitecture(SHAPE, 1, 8, 2), 0)
    with pytest.raises(ValueError, match="in the teacher and"):
        student_of(teacher, DiTArchitecture(SHAPE, 1, 16, 2, components=2), 0.0)
