"""A student's first weights: those of its teacher, the head widened from a velocity, or K components, to more.

Component k of the student begins as component k mod K of the teacher's mixture, or as the teacher's velocity. Equal
copies would have equal gradients and stay equal, so each is shifted by a random vector, the same at every position and
time. What the teacher does not have, the logits and the log-std of a mixture, begins as in a new network, but with a
standard deviation that suits it. The start from the teacher's weights is that of pi-Flow, arXiv 2510.14974.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gmtool.nn.architecture import HeadShape
from gmtool.nn.heads import LogStd

SPREAD = 0.3
"""Standard deviation of the vectors that move copies of a velocity apart, in units of the normalised latents."""
STD = 0.3
"""First standard deviation of the components over the velocity, where the teacher has none."""


@torch.no_grad()
def begin_as(
    network: nn.Module,
    teacher: Mapping[str, Tensor],
    before: HeadShape,
    after: HeadShape,
    generator: torch.Generator,
    spread: float = SPREAD,
    std: float = STD,
) -> None:
    """Load a student's first weights into its new network, in place; for the other arguments see `widened`.

    std: initial standard deviation of the components over the velocity, where the teacher's head has no mixture and the
    student learns it. Raises ValueError as `widened` does.
    """
    if not before.components:
        for layer in network.modules():
            if isinstance(layer, LogStd):
                nn.init.constant_(layer[-1].bias, math.log(std))  # type: ignore[arg-type]  # a linear layer
    network.load_state_dict(widened(teacher, network.state_dict(), before, after, generator, spread))


def widened(
    teacher: Mapping[str, Tensor],
    student: Mapping[str, Tensor],
    before: HeadShape,
    after: HeadShape,
    generator: torch.Generator,
    spread: float = SPREAD,
) -> dict[str, Tensor]:
    """The first weights of a student by name, from those of its teacher and the initial ones of its own network.

    before, after: what the heads of teacher and student predict. spread: standard deviation of the vectors that move
    copies apart, in units of the normalised latents, drawn from ``generator`` (on the CPU).

    A weight that the two networks share is the teacher's; one that only the student has keeps its initial value. Where
    the shapes differ, it is that of the head's output layer, which has ``numbers`` rows per position of a patch: it is
    widened as the module describes. Raises ValueError where shapes differ in any other way.
    """
    weights = {}
    for name, own in student.items():
        given = teacher.get(name)
        if given is None:
            weights[name] = own
        elif given.shape == own.shape:
            weights[name] = given
        elif given.shape[1:] == own.shape[1:] and given.shape[0] * after.numbers == own.shape[0] * before.numbers:
            weights[name] = _widened(given, own, before, after, generator, spread)
        else:
            raise ValueError(f"{name} is {tuple(given.shape)} in the teacher and {tuple(own.shape)} in the student")
    return weights


def _widened(
    given: Tensor, own: Tensor, before: HeadShape, after: HeadShape, generator: torch.Generator, spread: float
) -> Tensor:
    """A matrix or bias of the output layer."""
    rows = given.unflatten(0, (-1, before.numbers))  # patch^2, numbers, ...
    vectors, logits = rows.split([before.vectors * before.channels, before.components], dim=1)
    vectors = vectors.unflatten(1, (before.vectors, before.channels))
    source = torch.arange(after.vectors) % before.vectors
    wide = vectors[:, source].clone()
    copies = torch.arange(after.vectors) >= (before.vectors if before.components else 0)
    if given.dim() == 1 and after.components:  # one vector a component, at every position of a patch
        moved = torch.randn(after.vectors, after.channels, generator=generator) * spread
        wide += torch.where(copies[:, None], moved, 0).to(wide)
    new_logits = own.unflatten(0, (-1, after.numbers))[:, after.vectors * after.channels :]
    if before.components:
        new_logits = logits[:, source]
    return torch.cat([wide.flatten(1, 2), new_logits], dim=1).flatten(0, 1)
