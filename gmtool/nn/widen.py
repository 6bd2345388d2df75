"""A student's first weights: those of its teacher, the head widened from a velocity, or K components, to more.

Component k of the student begins as component k mod K of the teacher's mixture, or as the teacher's velocity. Copies
would stay alike for ever: so each is moved by a random vector, the same at every position and time. What the teacher
does not have, the logits and the log-std of a mixture, begins as in a new network, but with a deviation that suits it.
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
    """Give a student's new network its first weights, those of its teacher by name; see `widened`."""
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
    """Weights of a student by name, for those of its teacher and the first ones of its own network.

    A weight of the teacher whose number of rows is a multiple of ``before.numbers`` is the head's where the student's
    is another shape. Raises ValueError where the networks differ in more than their heads.
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
