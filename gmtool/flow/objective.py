"""What a network learns: a velocity by least squares (flow matching), or a mixture by likelihood (GMFlow, ``gm-kl``).

Both losses are one number per sample, (B,), in squared units or nats per latent entry, computed in float32 under any
autocast. Source: Lipman et al., arXiv 2210.02747; GMFlow, arXiv 2504.05304, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from gmtool.flow.model import Predict
from gmtool.flow.path import (
    data_mixture,
    forward_transition,
    interpolate,
    per_sample,
    reverse_transition,
    velocity,
)
from gmtool.flow.spectral import Spectrum, spectral_loss
from gmtool.mixture.gaussian_mixture import COMPONENT, GaussianMixture, from_rows, rows, squared_norm


@dataclass(frozen=True)
class Pairs:
    """Data x and the source's points z that go with them, (B, C, *S) each, in the coordinates of the flow."""

    x: Tensor
    z: Tensor


@dataclass(frozen=True)
class Draws:
    """The random numbers of the losses of B samples; an objective that takes further ones has a subclass.

    t (B,): times. noise (B, C, *S): standard normal, the source's.
    """

    t: Tensor
    noise: Tensor


Drawn = TypeVar("Drawn", bound=Draws)


class Objective(Protocol[Drawn]):
    """A training loss.

    mixture: whether the network predicts a mixture over the velocity, else the velocity. transitions: whether the loss
    draws x_t from x_s, for which the source must be N(0, I).
    """

    @property
    def mixture(self) -> bool:
        """See the class."""

    @property
    def transitions(self) -> bool:
        """See the class."""

    def draw(self, drawn: Draws, generator: torch.Generator, step: int) -> Drawn:
        """The random numbers of the loss: times and noise as ``drawn``, further ones from ``generator``, on its device.

        step: of training, from 0.
        """

    def loss(self, predict: Predict, pairs: Pairs, draws: Drawn) -> Tensor:
        """The loss of each sample, (B,) float32."""


@dataclass(frozen=True)
class FlowMatching:
    """|u_theta(x_t, t) - (z - x)|^2 (``fm``). Source: Lipman et al., arXiv 2210.02747; MM-FM, section 3."""

    mixture = False
    transitions = False

    def draw(self, drawn: Draws, _generator: torch.Generator, _step: int) -> Draws:
        """See `Objective.draw`."""
        return drawn

    def loss(self, predict: Predict, pairs: Pairs, draws: Draws) -> Tensor:
        """See `Objective.loss`."""
        x_t = interpolate(pairs.x, pairs.z, draws.t)
        return flow_matching_loss(cast(Tensor, predict(x_t, draws.t)), velocity(pairs.x, pairs.z))


@dataclass(frozen=True)
class TransitionDraws(Draws):
    """The random numbers of `TransitionNLL`.

    onward (B, C, *S): standard normal, of the transition from x_s to x_t. uniform (B, 1, *S) in [0, 1): for the loss
    of a spectrum, None without.
    """

    onward: Tensor
    uniform: Tensor | None = None


@dataclass(frozen=True)
class TransitionNLL:
    """-log q_theta(x_s | x_t) at a drawn x_s, s = t (1 - lambda) (``gm-kl``); the source must be N(0, I).

    ratio: lambda in (0, 1]. spectrum: trained beside the network by `gmtool.flow.spectral.spectral_loss`, which
    reaches it alone; None for none. Source: GMFlow, arXiv 2504.05304, algorithm 1.
    """

    ratio: float = 0.5
    spectrum: Spectrum | None = None

    mixture = True
    transitions = True

    def draw(self, drawn: Draws, generator: torch.Generator, _step: int) -> TransitionDraws:
        """See `Objective.draw`."""
        count, _, *positions = shape = drawn.noise.shape
        onward, uniform = torch.randn(shape, generator=generator, device=generator.device), None
        if self.spectrum is not None:
            uniform = torch.rand(count, 1, *positions, generator=generator, device=generator.device)
        return TransitionDraws(drawn.t, drawn.noise, onward, uniform)

    def loss(self, predict: Predict, pairs: Pairs, draws: TransitionDraws) -> Tensor:
        """See `Objective.loss`. Raises ValueError for a spectrum where the draws have nothing for it."""
        t = draws.t
        s = t * (1 - self.ratio)
        x_s = interpolate(pairs.x, pairs.z, s)
        x_t = forward_transition(x_s, s, t, draws.onward)
        predicted = cast(GaussianMixture, predict(x_t, t))
        loss = transition_loss(predicted, x_t, t, x_s, s)
        if self.spectrum is None:
            return loss
        if draws.uniform is None:
            raise ValueError("the loss of a spectrum takes uniform numbers: TransitionDraws.uniform")
        return loss + self.spectrum.weight * spectral_loss(
            self.spectrum, data_mixture(predicted, x_t, t), pairs.x, draws.uniform
        )


MAXIMUM_INVERSE_STD = 1e4
"""Cap of 1 / std in the likelihood, as in GMFlow's implementation: a vanishing std cannot make the loss explode."""

NEGLIGIBLE = 1e-28
"""Smaller derivatives, those of components that have no part in a sample, are 0: as subnormal numbers they would make
the matrix products of a CPU's backward pass up to twice as slow."""


def flow_matching_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """|u_theta - u|^2, averaged over C and positions. Both (B, C, *S); returns (B,).

    Source: Lipman et al., arXiv 2210.02747; MM-FM, section 3.
    """
    return (predicted.float() - target.float()).square().flatten(1).mean(1)


def mixture_nll(mixture: GaussianMixture, x: Tensor) -> Tensor:
    """-log q(x) in nats without the constant C/2 log(2 pi), per position: (B, *S) for x (B, C, *S).

    Source: GMFlow, eq. 6.
    """
    distance = squared_distance(rows(x.unsqueeze(COMPONENT)), rows(mixture.means), x.new_ones(1))
    return _nll(from_rows(distance, x.shape[2:]), mixture.log_weights, mixture.variance, x.shape[1])


def _nll(distance: Tensor, log_weights: Tensor, variance: Tensor, channels: int) -> Tensor:
    """The NLL (B, *S) of the squared distances (B, K, 1, *S) of a point to the means."""
    log_std = 0.5 * variance.log()
    inverse_std = (-log_std).exp().clamp(max=MAXIMUM_INVERSE_STD)
    log_normal = -0.5 * distance * inverse_std.square() - channels * log_std
    return -torch.logsumexp(log_weights + log_normal, COMPONENT).squeeze(1)


class _SquaredDistance(torch.autograd.Function):
    """See `squared_distance`. Autograd alone would keep three tensors of the size of the means; this one keeps none."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, means: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, means, scale)
        distances = [squared_norm(torch.addcmul(x, mean, scale, value=-1)) for mean in means.split(1, dim=2)]
        return torch.cat(distances, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, means, scale = ctx.saved_tensors
        kept = 2 * gradient.masked_fill(gradient.abs() < NEGLIGIBLE, 0)
        difference = torch.addcmul(-x, means, scale)
        of_x = -(kept * difference).sum(2, keepdim=True) if ctx.needs_input_grad[0] else None
        return of_x, difference.mul_(kept * scale) if ctx.needs_input_grad[1] else None, None


def squared_distance(x: Tensor, means: Tensor, scale: Tensor) -> Tensor:
    """|x - scale m_k|^2, (B, P, K, 1), for rows x (B, P, 1, C) and means (B, P, K, C); scale (B, 1, 1, 1) or (1,).

    Differentiable once in x and in the means. Beyond its arguments it takes 2 / K of the means' memory, and as much
    as they do for their gradient.
    """
    return cast(Tensor, _SquaredDistance.apply(x, means, scale))


def transition_loss(predicted: GaussianMixture, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor) -> Tensor:
    """The NLL of the drawn x_s under the predicted q(x_s | x_t), averaged over positions and divided by C: (B,).

    predicted: the mixture over the velocity u at (x_t, t). The loss equals KL(q_data(x_s | x_t) | q_theta(x_s | x_t))
    up to a constant. With one component of fixed std and s = 0 it is |u_theta - u|^2 / (2 std^2) up to a constant:
    flow matching. It is `mixture_nll` of `gmtool.flow.path.transition_mixture` of `gmtool.flow.path.data_mixture`, but
    makes the means of neither: with x = x_t - t u, the mean of x_s is (from_x_t + from_x) x_t - from_x t u_k.
    Source: GMFlow, section 3.2, eq. 8.
    """
    channels, positions = x_t.shape[1], x_t.shape[2:]
    step = reverse_transition(x_t.float(), t, s)
    target = x_s.float() - (step.from_x_t + step.from_x) * x_t.float()
    scale = (-step.from_x * per_sample(t, x_t)).unsqueeze(COMPONENT)
    distance = squared_distance(rows(target.unsqueeze(COMPONENT)), rows(predicted.means.float()), rows(scale))
    variance = scale.square() * predicted.variance.float() + step.variance.unsqueeze(COMPONENT)
    nll = _nll(from_rows(distance, positions), predicted.log_weights.float(), variance, channels)
    return nll.reshape(len(nll), -1).mean(1) / channels
