"""The training task: from a batch and random numbers to a loss per sample.

The random numbers of a step are drawn for its whole batch, then cut with it into what is computed at once: so they
depend neither on the micro-batch nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from gmtool.artifacts.method_record import MethodRecord
from gmtool.flow.method import Method
from gmtool.flow.model import VelocityModel
from gmtool.flow.objective import Draws, Pairs
from gmtool.flow.source import ModeStatistics
from gmtool.flow.spectral import Spectrum
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions
from gmtool.nn.conditioning import Conditioning
from gmtool.nn.network import Network

Forward = Callable[[Tensor, Tensor, Conditions], Tensor | GaussianMixture]
"""How the network is called in training: x_t (B, C, H, W), t (B,), conditions -> its prediction of the velocity."""

Teach = Callable[[Conditions, ModeStatistics | None], VelocityModel]
"""A teacher: its velocity, in the coordinates of the student's flow, for samples with these conditions and modes."""

_Rows = TypeVar("_Rows", bound=Any)


def each_tensor(values: _Rows, apply: Callable[[Tensor], Tensor]) -> _Rows:
    """A copy of a dataclass of tensors, None, floats and such dataclasses, with ``apply`` applied to every tensor."""

    def done(value: Any) -> Any:
        if value is None or isinstance(value, float):
            return value
        return apply(value) if isinstance(value, Tensor) else each_tensor(value, apply)

    return replace(values, **{member.name: done(getattr(values, member.name)) for member in fields(values)})


def take_rows(values: _Rows, rows: slice | Tensor) -> _Rows:
    """The samples ``rows`` (a slice, or indices) of a dataclass of tensors (B, ...); see `each_tensor`."""
    return each_tensor(values, lambda value: value[rows])


@dataclass(frozen=True)
class Batch:
    """Normalised latents x (B, C, H, W) float32, and what is known of them; None for what the task does not ask for.

    classes, modes (B,) int64: labels, the data's own. source_modes: statistics of the modes that noise comes from,
    which are the data's own under mode coupling. mode_mean (B, C, H, W): the mean of the data's own modes.
    """

    x: Tensor
    classes: Tensor | None = None
    modes: Tensor | None = None
    source_modes: ModeStatistics | None = None
    mode_mean: Tensor | None = None


@dataclass(frozen=True)
class StepDraws:
    """The random numbers of B samples: hidden (B,) bool, whether to drop the condition; and the method's."""

    hidden: Tensor
    method: Draws


@dataclass(frozen=True)
class Prepared:
    """B samples, ready for the loss: paired data and noise, the network's conditions, and the random numbers.

    modes: statistics of the modes that the noise comes from; None where the method does not use them.
    """

    pairs: Pairs
    conditions: Conditions
    draws: Draws
    modes: ModeStatistics | None = None

    def __len__(self) -> int:
        return len(self.pairs.x)


@dataclass(frozen=True)
class Task:
    """A method, the network's conditions, and the share of the samples from which they are hidden in training.

    shape: (C, H, W) of the latents. teach: the velocity of a student's teacher; None for what is no student.
    """

    method: Method
    conditioning: Conditioning
    dropout: float
    shape: tuple[int, int, int]
    teach: Teach | None = field(default=None, kw_only=True)

    def draw(self, count: int, generator: torch.Generator, step: int = 0) -> StepDraws:
        """The random numbers of ``count`` samples at a step from 0, all from ``generator`` and on its device."""
        hidden = torch.rand(count, generator=generator, device=generator.device) < self.dropout
        return StepDraws(hidden, self.method.draw(count, self.shape, generator, step))

    def prepare(self, batch: Batch, draws: StepDraws) -> Prepared:
        """Pair data and noise, and hide conditions. With a coupling of whole batches it takes all of the batch."""
        given = self.conditioning.given(batch.classes, batch.modes, batch.mode_mean)
        return Prepared(
            self.method.pair(batch.x, draws.method.noise, batch.source_modes),
            self.conditioning.hidden(given, draws.hidden),
            draws.method,
            batch.source_modes if self.method.uses_modes else None,
        )

    def losses(self, forward: Forward, prepared: Prepared) -> Tensor:
        """The loss of each sample, (B,) float32. forward: the network, wrapped or compiled where it is."""

        def predict(x_t: Tensor, t: Tensor) -> Tensor | GaussianMixture:
            return forward(x_t, t, prepared.conditions)

        method = self.method
        if self.teach is not None:
            method = method.taught(self.teach(prepared.conditions, prepared.modes))
        return method.loss(method.in_flow(predict, prepared.modes), prepared.pairs, prepared.draws)

    def any_batch(self, count: int, device: torch.device) -> Batch:
        """A batch of zeros with all that the task asks of a real one."""
        x = torch.zeros(count, *self.shape, device=device)
        labels = torch.zeros(count, dtype=torch.long, device=device)
        return Batch(
            x,
            labels if self.conditioning.classes else None,
            labels if self.conditioning.modes else None,
            ModeStatistics(x, torch.ones_like(x)) if self.method.uses_modes else None,
            x if self.conditioning.mode_mean else None,
        )


def task_of(record: MethodRecord, network: Network, teach: Teach | None = None) -> Task:
    """The task of a run for its network, whose spectrum it also trains if it has one."""
    architecture = network.architecture
    spectrum = None
    if network.spectrum is not None:
        spectrum = Spectrum(network.spectrum, architecture.spectral, record.spectral_weight)
    conditioning = record.conditioning(architecture)
    return Task(record.with_spectrum(spectrum), conditioning, record.dropout, architecture.shape, teach=teach)
