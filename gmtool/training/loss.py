"""One training loss from one batch: pairing, time, path, network, objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from gmtool.config.train import TrainConfig
from gmtool.flow.coupling import batch_optimal_transport
from gmtool.flow.objectives import flow_matching_loss, transition_loss
from gmtool.flow.path import data_mixture, forward_transition, interpolate, velocity
from gmtool.flow.source import Frame
from gmtool.flow.spectral import spectral_loss
from gmtool.flow.times import draw_times
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.nn.architecture import Conditions
from gmtool.nn.network import Network


@dataclass(frozen=True)
class Batch:
    """Normalised latents x (B, C, H, W) float32, labels (B,) int64, and the frames of the modes that noise comes from.

    classes is None without classes, modes without a fitted mixture, frame for a Gaussian source. With mode coupling
    frame belongs to modes, the data's own; with other couplings it is drawn apart from the data.
    """

    x: Tensor
    classes: Tensor | None = None
    modes: Tensor | None = None
    frame: Frame | None = None


def training_loss(network: Network, batch: Batch, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """The loss of each datum, (B,) float32. All randomness comes from ``generator``, which is on the data's device."""
    conditions = _hide(network, batch, config, generator)
    assert config.time_shift is not None  # a run's config is resolved
    t = draw_times(len(batch.x), config.time_distribution, config.time_shift, generator)
    noise = _normal_like(batch.x, generator)
    if config.mixture:
        return _mixture_loss(network, batch, config, conditions, t, noise, generator)
    z = noise if batch.frame is None else batch.frame.restore(noise)
    if config.coupling == "batch-ot":
        z = z[batch_optimal_transport(batch.x, z)]
    predicted = network(interpolate(batch.x, z, t), t, conditions)
    return flow_matching_loss(cast(Tensor, predicted), velocity(batch.x, z))


def _mixture_loss(
    network: Network,
    batch: Batch,
    config: TrainConfig,
    conditions: Conditions,
    t: Tensor,
    noise: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """GMFlow's transition loss, in the mode's whitened coordinates when the source is a mixture.

    With a spectrum network its loss is added, which reaches that network alone.
    """
    y = batch.x if batch.frame is None else batch.frame.whiten(batch.x)
    s = t * (1 - config.transition_ratio)
    y_s = interpolate(y, noise, s)
    y_t = forward_transition(y_s, s, t, _normal_like(y, generator))
    data = data_mixture(cast(GaussianMixture, network(y_t, t, conditions)), y_t, t)
    loss = transition_loss(data, y_t, t, y_s, s)
    if network.spectrum is None:
        return loss
    uniform = torch.rand(len(y), 1, *y.shape[2:], generator=generator, device=y.device)
    return loss + spectral_loss(network.spectrum, data, y, network.architecture.spectral, uniform)


def _hide(network: Network, batch: Batch, config: TrainConfig, generator: torch.Generator) -> Conditions:
    """The labels for the network, the condition replaced by the null label for a share ``dropout`` of the data.

    The modes of a union are its coordinates, not its condition: they are never hidden.
    """
    hidden = torch.rand(len(batch.x), generator=generator, device=generator.device) < config.dropout
    classes = batch.classes if network.architecture.classes else None
    modes = batch.modes if network.architecture.modes else None
    if config.condition == "class" and classes is not None:
        classes = classes.masked_fill(hidden, network.architecture.classes)
    if config.condition == "mode" and modes is not None and not config.union:
        modes = modes.masked_fill(hidden, network.architecture.modes)
    return Conditions(classes, modes)


def _normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device)
