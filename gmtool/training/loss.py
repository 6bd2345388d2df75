"""One training loss from one batch: pairing, time, path, network, objective.

The random numbers of a step are drawn for its whole batch (`draw`), then cut with it into what is computed at once: so
they depend neither on the micro-batch nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from gmtool.flow.coupling import batch_optimal_transport
from gmtool.flow.objectives import flow_matching_loss, transition_loss
from gmtool.flow.path import data_mixture, forward_transition, interpolate, per_sample, velocity
from gmtool.flow.source import Frame
from gmtool.flow.spectral import spectral_loss
from gmtool.flow.times import draw_times
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Architecture, Conditions
from gmtool.nn.network import Network
from gmtool.stages.train.config import TrainConfig

Forward = Callable[[Tensor, Tensor, Conditions], Tensor | GaussianMixture]
"""How the network is called in training: x_t (B, C, H, W), t (B,), labels -> its prediction of the velocity."""

_Rows = TypeVar("_Rows", bound=Any)


def each_tensor(values: _Rows, apply: Callable[[Tensor], Tensor]) -> _Rows:
    """A dataclass of tensors, of None, and of such dataclasses, with ``apply`` done to every tensor."""

    def done(value: Any) -> Any:
        return value if value is None else apply(value) if isinstance(value, Tensor) else each_tensor(value, apply)

    return replace(values, **{each.name: done(getattr(values, each.name)) for each in fields(values)})


def take_rows(values: _Rows, rows: slice | Tensor) -> _Rows:
    """The data ``rows`` (a slice, or indices) of a dataclass of tensors (B, ...); see `each_tensor`."""
    return each_tensor(values, lambda value: value[rows])


@dataclass(frozen=True)
class Batch:
    """Normalised latents x (B, C, H, W) float32, labels (B,) int64, and the frames of the modes that noise comes from.

    classes is None without classes, modes without a fitted mixture, frame for a Gaussian source. With mode coupling
    frame belongs to modes, the data's own; with other couplings it is drawn apart from the data. context (B, C, H, W):
    the mean of the data's own modes, None where the network is not shown it.
    """

    x: Tensor
    classes: Tensor | None = None
    modes: Tensor | None = None
    frame: Frame | None = None
    context: Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """The random numbers of the loss of B data.

    hidden (B,) bool: whose condition the network does not see. t (B,): times. noise (B, C, H, W): standard normal, the
    source's. onward (B, C, H, W): standard normal, that of the transition from x_s to x_t (gm-kl). uniform (B, 1, H, W)
    in [0, 1): for the spectrum's loss.
    """

    hidden: Tensor
    t: Tensor
    noise: Tensor
    onward: Tensor | None = None
    uniform: Tensor | None = None


def draw(count: int, architecture: Architecture, config: TrainConfig, generator: torch.Generator) -> Draws:
    """The random numbers of ``count`` data, all from ``generator`` and on its device."""
    assert config.time_shift is not None  # a run's config is resolved
    shape, device = architecture.shape, generator.device

    def normal() -> Tensor:
        return torch.randn(count, *shape, generator=generator, device=device)

    return Draws(
        hidden=torch.rand(count, generator=generator, device=device) < config.dropout,
        t=draw_times(count, config.time_distribution, config.time_shift, generator),
        noise=normal(),
        onward=normal() if config.mixture else None,
        uniform=(
            torch.rand(count, 1, *shape[1:], generator=generator, device=device) if architecture.spectral else None
        ),
    )


def pair(batch: Batch, draws: Draws, config: TrainConfig) -> tuple[Batch, Draws]:
    """Batch and numbers, with the noise in the order of the coupling: that of batch-ot depends on all the data."""
    if config.coupling != "batch-ot":
        return batch, draws
    z = draws.noise if batch.frame is None else batch.frame.restore(draws.noise)
    order = batch_optimal_transport(batch.x, z)
    frame = None if batch.frame is None else take_rows(batch.frame, order)
    return replace(batch, frame=frame), replace(draws, noise=draws.noise[order])


def training_loss(
    network: Network, batch: Batch, draws: Draws, config: TrainConfig, forward: Forward | None = None
) -> Tensor:
    """The loss of each datum, (B,) float32, of paired data and numbers.

    forward: how the network is called, where it is wrapped or compiled; default: itself.
    """
    conditions = _hide(network.architecture, batch, config, draws.hidden)
    if config.mixture:
        return _mixture_loss(network, batch, draws, config, conditions, forward or network)
    z = draws.noise if batch.frame is None else batch.frame.restore(draws.noise)
    predicted = (forward or network)(interpolate(batch.x, z, draws.t), draws.t, conditions)
    return flow_matching_loss(cast(Tensor, predicted), velocity(batch.x, z))


def _mixture_loss(
    network: Network, batch: Batch, draws: Draws, config: TrainConfig, conditions: Conditions, forward: Forward
) -> Tensor:
    """GMFlow's transition loss, in the mode's whitened coordinates when the source is a mixture.

    With a spectrum network its loss is added, which reaches that network alone.
    """
    assert draws.onward is not None  # drawn for a mixture
    y, t = batch.x if batch.frame is None else batch.frame.whiten(batch.x), draws.t
    s = t * (1 - config.transition_ratio)
    y_s = interpolate(y, draws.noise, s)
    y_t = forward_transition(y_s, s, t, draws.onward)
    predicted = cast(GaussianMixture, forward(y_t, t, conditions))
    loss = transition_loss(predicted, y_t, t, y_s, s)
    if network.spectrum is None:
        return loss
    assert draws.uniform is not None  # drawn for a spectrum
    data = data_mixture(predicted, y_t, t)
    return loss + spectral_loss(network.spectrum, data, y, network.architecture.spectral, draws.uniform)


def _hide(architecture: Architecture, batch: Batch, config: TrainConfig, hidden: Tensor) -> Conditions:
    """What the network is told, the condition replaced by the null label, and its context by zeros, where hidden.

    The modes of a union are its coordinates, not its condition: they are never hidden.
    """
    classes = batch.classes if architecture.classes else None
    modes, context = batch.modes if architecture.modes else None, batch.context
    if config.condition == "class" and classes is not None:
        classes = classes.masked_fill(hidden, architecture.classes)
    if config.condition == "mode" and modes is not None and not config.union:
        modes = modes.masked_fill(hidden, architecture.modes)
        context = None if context is None else context.masked_fill(per_sample(hidden, context), 0)
    return Conditions(classes, modes, context)
