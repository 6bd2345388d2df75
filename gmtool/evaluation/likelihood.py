"""Likelihood of data under a flow: the change of variables along its ODE, and the NLL of the velocity.

With dx/dt = u(x, t) from data at t = 0 to the source at t = 1 (the probability-flow ODE; Chen et al. 2018, arXiv
1806.07366; Song et al. 2021, arXiv 2011.13456, appendix D):

    log p_0(x_0) = log p_1(x_1) + int_0^1 div u(x_t, t) dt

div u = tr du/dx is estimated by Hutchinson's E v^T (du/dx) v with random signs v, one vector per sample for its whole
path, which makes the estimate unbiased (FFJORD, arXiv 1810.01367). Log-densities are in nats, of points (B, C, *S).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gmtool.errors import UserError, install
from gmtool.flow.model import Predict, VelocityModel
from gmtool.flow.path import interpolate, velocity
from gmtool.flow.source import ModeStatistics
from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.streams import Noise

LOG_TWO_PI = math.log(2 * math.pi)

SourceDensity = Callable[[Tensor], Tensor]
"""log p_1 (B,) of points (B, C, *S)."""


@dataclass(frozen=True, eq=False)
class Density:
    """log p_0, (B,) float64, and how often the velocity was evaluated."""

    log_density: Tensor
    evaluations: int


def require_torchdiffeq() -> None:
    """Raise UserError, with the repair, where torchdiffeq is not installed."""
    try:
        import torchdiffeq  # noqa: F401
    except ImportError as error:
        raise UserError(f"the likelihood needs torchdiffeq: {install('likelihood')}") from error


def flow_density(
    field: VelocityModel, source: SourceDensity, x: Tensor, probes: Iterable[Tensor], tolerance: float = 1e-5
) -> Density:
    """log p_0(x) by Dormand and Prince's adaptive method (torchdiffeq's ``dopri5``); see the module.

    field: u, differentiable once in x. source: log p_1.
    x (B, C, *S): the data.
    probes: vectors v of random signs (B, C, *S); the divergence is the mean over them.
    tolerance: absolute and relative, per step, for points and divergence together.
    Raises ImportError without torchdiffeq; see `require_torchdiffeq`.
    """
    from torchdiffeq import odeint

    vectors, calls = list(probes), [0]

    def slope(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        calls[0] += 1
        with torch.enable_grad():
            point = state[0].detach().requires_grad_()
            u = field(point, t.to(point).expand(len(point)))
            divergence = torch.zeros_like(state[1])
            for index, vector in enumerate(vectors):
                (pulled,) = torch.autograd.grad(u, point, vector, retain_graph=index + 1 < len(vectors))
                divergence = divergence + (pulled * vector).flatten(1).sum(1) / len(vectors)
        return u.detach(), divergence.detach()

    times = torch.tensor([0.0, 1.0], dtype=torch.float64, device=x.device)
    with torch.no_grad():
        points, gains = odeint(slope, (x, x.new_zeros(len(x))), times, rtol=tolerance, atol=tolerance, method="dopri5")
    return Density(source(points[-1]).double() + gains[-1].double(), calls[0])


def random_signs(noise: Noise, like: Tensor) -> Tensor:
    """Random signs, +1 or -1 with probability 1/2 each, with the shape (B, C, *S), type and device of ``like``."""
    return (noise.uniform(like.shape[1:]) < 0.5).to(like) * 2 - 1


def normal_density(x: Tensor, modes: ModeStatistics | None = None) -> Tensor:
    """log N(x; mu_k, diag s_k^2), (B,) float64, for x (B, C, *S); modes: mu_k and s_k, or None for N(0, I)."""
    x = x.double()
    if modes is None:
        return -0.5 * (x.square() + LOG_TWO_PI).flatten(1).sum(1)
    mean, std = modes.mean.double(), modes.std.double()
    return -0.5 * (((x - mean) / std).square() + 2 * std.log() + LOG_TWO_PI).flatten(1).sum(1)


def mixture_density(
    x: Tensor, weights: Tensor, modes_at: Callable[[Tensor], ModeStatistics], at_once: int = 16
) -> Tensor:
    """log sum_k w_k N(x; mu_k, diag s_k^2), (B,) float64, for x (B, C, *S).

    weights (B, K): w_k, for each sample its own.
    modes_at: gives the statistics of modes (n,) int64; at_once: number of modes in memory at a time.
    """
    parts = []
    for some in torch.arange(weights.shape[1]).split(at_once):
        table = modes_at(some)
        for index in range(len(some)):
            mode = ModeStatistics(table.mean[index : index + 1], table.std[index : index + 1])
            parts.append(normal_density(x, mode))
    return torch.logsumexp(torch.stack(parts, 1) + weights.to(x.device, torch.float64).log(), 1)


def velocity_nll(predict: Predict, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """-log q(u | x_t) of the velocity u = z - x at x_t = (1 - t) x + t z, in nats per entry, (B,).

    Its mean over data, source and t uniform in (0, 1) is GMFlow's time-averaged NLL (arXiv 2504.05304, section 3.1).
    predict: a network that predicts a mixture over u.
    x, z (B, C, *S): data and source points. t (B,): times.
    Raises TypeError for a network that predicts no mixture.
    """
    predicted = predict(interpolate(x, z, t), t)
    if not isinstance(predicted, GaussianMixture):
        raise TypeError("the network predicts a velocity, not a mixture")
    # a density at any std, unlike the loss, which limits 1 / std
    return -predicted.log_density(velocity(x, z)).flatten(1).mean(1) / x.shape[1]
