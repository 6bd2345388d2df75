"""GM-ODE and GM-SDE: solvers that use the whole mixture q(x | x_t), of order 1 or 2 (GMFlow, section 3.3).

One network evaluation a step. GM-ODE integrates a step in sub-steps with no further evaluation, because the mixture
seen at (x_t, t) gives the denoising mean at every later point in closed form. GM-SDE draws x from the mixture and then
x_s from the reverse transition. At t = 1 a solver starts from the source; both end at exactly t = 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.path import bridge_factor, reverse_transition
from gmtool.flow.prediction import TINY, MixtureModel, Prediction, sample_mean
from gmtool.flow.solvers.substeps import follow
from gmtool.flow.times import expand, time_grid
from gmtool.mixture.gaussian_mixture import CHANNEL, GaussianFactor, GaussianMixture, IsotropicGaussian, quotient
from gmtool.streams import Noise

DAMPING_ADDED, DAMPING_GUIDED = 0.005, 1.0
"""ca and cb of the second order's damping sqrt(1 - V ((cb w)^2 + ca) / h'^2), as in GMFlow's implementation."""


def mean_at(mixture: GaussianMixture, x_t: Tensor, t: Tensor, x_r: Tensor, r: Tensor) -> Tensor:
    """E[x | x_r] at (x_r, r), 0 < r < t, under the mixture q(x | x_t) that was predicted at (x_t, t): (B, C, *S)."""
    return mixture.mean_times(bridge_factor(x_r, r, x_t, t, center=mixture.mean()))


def second_order(prediction: Prediction, before: Tensor, length: float, length_before: float) -> GaussianFactor:
    """What the base mixture is multiplied by: the change of its mean since the previous step, fused with guidance.

    delta = (mu - mu') h / (2 h') sqrt(max(0, 1 - V ((cb w)^2 + ca) / h'^2)), where mu is the present mean and mu',
    ``before``, the previous mixture's mean re-evaluated here; B = delta + bias, limited to <B^2> <= V; the factor is
    N(base mean + B, V max(1 - <B^2> / V, 1e-6)) / N(base mean, V). Source: GMFlow, appendix A.4.
    """
    gaussian, factor = prediction.gaussian, prediction.factor
    variance = gaussian.variance
    mean = gaussian.mean if factor is None else prediction.base.mean_times(factor)
    spread = (DAMPING_GUIDED * prediction.scale) ** 2 + DAMPING_ADDED
    damping = (1 - variance * spread / length_before**2).clamp(min=0).sqrt()
    change = (mean - before) * (0.5 * length / length_before) * damping
    if prediction.bias is not None:
        change = change + prediction.bias
    size = sample_mean(change.square())
    change = change * (variance / size.clamp(min=TINY)).sqrt().clamp(max=1)
    target = IsotropicGaussian(gaussian.mean + change, variance * (1 - size / variance).clamp(min=TINY))
    return quotient(target, gaussian)


@dataclass(frozen=True)
class Ahead:
    """What GM-ODE's second order remembers of a step: its mixture's mean at the step's end, and the step's length."""

    mean: Tensor
    length: float


def gm_ode(model: MixtureModel, x: Tensor, steps: int, shift: float, order: int = 1, substeps: int = 1) -> Tensor:
    """The probability-flow ODE under the predicted mixtures. x (B, C, *S) at t = 1; returns x at t = 0.

    The grid has steps * substeps intervals, shifted as a whole; the network is evaluated every ``substeps`` of them.
    Sub-step: x_r' = x_r + (x_r - E[x | x_r]) / r (r' - r), see `gmtool.flow.solvers.substeps`. A step ends where the
    next one re-evaluates its mixture's mean, which is therefore found on the way.
    Source: GMFlow, section 3.3, algorithm 2.
    """
    grid = time_grid(steps * substeps, shift)
    memory: Ahead | None = None
    for step in range(steps):
        points = grid[step * substeps : (step + 1) * substeps + 1]
        length = float(points[0] - points[-1])
        prediction = model(x, expand(points[0], x))
        factor = prediction.factor
        if memory is not None:
            factor = second_order(prediction, memory.mean, length, memory.length)
        followed = follow(
            prediction.base,
            x,
            points.tolist(),
            factor,
            prediction.factor,
            mean=prediction.gaussian.mean,
            look_ahead=order == 2 and step + 1 < steps,
        )
        x = followed.x
        memory = None if followed.mean is None else Ahead(followed.mean, length)
    return x


Draw = Callable[[GaussianMixture, Noise], Tensor]
"""(mixture, the samples' random numbers) -> a draw from the mixture (B, C, *S)."""


def independent_draw(mixture: GaussianMixture, noise: Noise) -> Tensor:
    """A draw from the mixture, the positions independent of each other: (B, C, *S)."""
    shape = mixture.means.shape[CHANNEL:]
    return mixture.draw(noise.uniform((1, *shape[1:])).to(mixture.means), noise.normal(shape).to(mixture.means))


@dataclass(frozen=True)
class Memory:
    """What GM-SDE's second order remembers of the previous step: its mixture before the correction, where, how long."""

    mixture: GaussianMixture
    x: Tensor
    time: Tensor
    length: float


def gm_sde(
    model: MixtureModel,
    x: Tensor,
    steps: int,
    shift: float,
    noise: Noise,
    order: int = 1,
    draw: Draw = independent_draw,
) -> Tensor:
    """Ancestral sampling: x0 ~ q(x | x_t), then x_s ~ q(x_s | x0, x_t). x (B, C, *S) at t = 1; returns x at t = 0.

    draw: how x0 is drawn from the mixture; see also `gmtool.flow.spectral.spectral_draw`.
    Source: GMFlow, section 3.3, algorithm 2.
    """
    grid = time_grid(steps, shift)
    memory: Memory | None = None
    for start, stop in itertools.pairwise(grid):
        t, s, length = expand(start, x), expand(stop, x), float(start - stop)
        prediction = model(x, t)
        mixture = guided = prediction.mixture
        if memory is not None:
            before = mean_at(memory.mixture, memory.x, memory.time, x, t)
            mixture = prediction.base.times(second_order(prediction, before, length, memory.length))
        memory = Memory(guided, x, t, length) if order == 2 else None
        x = reverse_transition(x, t, s).draw(x, draw(mixture, noise), noise.normal(x.shape[1:]).to(x))
    return x
