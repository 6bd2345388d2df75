"""The second order of GM-ODE and GM-SDE: the change of the mixture's mean since the previous step, carried on.

With the present mean mu and the previous step's mean mu', re-evaluated at the present point, h and h' the lengths of
both steps, V the variance of the mixture's moment-matched Gaussian and w the guidance scale,

    delta = (mu - mu') h / (2 h') sqrt(max(0, 1 - V ((cb w)^2 + ca) / h'^2))
    B = delta + bias of the guidance, limited to <B^2> <= V
    the mixture is multiplied by N(base mean + B, V max(1 - <B^2> / V, 1e-6)) / N(base mean, V)

so that it fuses with the guidance into one update. The root damps the correction where steps are short beside the
mixture's spread. The limit multiplies B by min(1, sqrt(V / max(<B^2>, 1e-6))): where V < 1e-6, this shortens a B within
<B^2> <= V, too, by sqrt(V / 1e-6). Source: GMFlow, arXiv 2504.05304, appendix A.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.model import TINY, Prediction, sample_mean
from gmtool.mixture.gaussian_mixture import GaussianFactor, IsotropicGaussian, quotient


@dataclass(frozen=True)
class Damping:
    """ca and cb of the damping; by default those of GMFlow's implementation."""

    added: float = 0.005
    guided: float = 1.0


def second_order(
    prediction: Prediction, before: Tensor, length: float, length_before: float, damping: Damping
) -> GaussianFactor:
    """The factor that the base mixture is multiplied by; see the module.

    before: mu' (B, C, *S). length, length_before: h and h', in time.
    """
    gaussian, factor = prediction.gaussian, prediction.factor
    variance = gaussian.variance
    mean = gaussian.mean if factor is None else prediction.base.mean_times(factor)
    scale = 0.0 if prediction.guidance is None else prediction.guidance.scale
    spread = (damping.guided * scale) ** 2 + damping.added
    root = (1 - variance * spread / length_before**2).clamp(min=0).sqrt()
    change = (mean - before) * (0.5 * length / length_before) * root
    if prediction.guidance is not None:
        change = change + prediction.guidance.bias
    size = sample_mean(change.square())
    change = change * (variance / size.clamp(min=TINY)).sqrt().clamp(max=1)
    target = IsotropicGaussian(gaussian.mean + change, variance * (1 - size / variance).clamp(min=TINY))
    return quotient(target, gaussian)
