"""Mixtures of isotropic Gaussians, batched over samples and positions, as frozen values. No time in here.

At each position of each sample a mixture over C numbers has the density

    q(x) = sum_k pi_k N(x; m_k, v I),

with weights pi_k and means m_k per position and a shared variance v. Layout, with ``*S`` any number of position
dimensions (H, W for latents, none for points):

    means (B, K, C, *S)    log_weights (B, K, 1, *S)    variance (B, 1 or K, 1, *S or ones)

Gaussians and functions of x drop the component dimension: (B, C, *S), with variances (B, 1, *S or ones). In memory the
means are best stored with the channels innermost, (B, *S, K, C), as heads produce them: each position is then a small
matrix (`rows`), and a sum over components or channels is one pass without a copy. Other layouts give the same values.

Source: GMFlow, arXiv 2504.05304, section 3 and appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COMPONENT, CHANNEL = 1, 2
"""Dimensions of ``GaussianMixture.means``."""


def rows(x: Tensor) -> Tensor:
    """(B, K, C, *S) as (B, P, K, C), channels innermost: a matrix per position. A view when they lie so in memory."""
    matrices = x.reshape(*x.shape[: CHANNEL + 1], -1).movedim(-1, 1)
    return matrices if matrices.stride(-1) == 1 else matrices.contiguous()


def from_rows(x: Tensor, positions: torch.Size) -> Tensor:
    """The inverse of `rows`: (B, P, K, C) as (B, K, C, *positions)."""
    return x.movedim(1, -1).reshape(x.shape[0], *x.shape[2:], *positions)


def contract(first: Tensor, second: Tensor) -> Tensor:
    """The matrix product (..., n, m) x (..., m, p) in the precision of its operands, under any autocast."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second


def squared_norm(x: Tensor) -> Tensor:
    """Sum of squares over the last dimension: (B, ..., C) -> (B, ..., 1), in one pass without a copy."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()


@dataclass(frozen=True)
class IsotropicGaussian:
    """N(x; mean, variance I). mean (B, C, *S), variance (B, 1, *S or ones)."""

    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class FullGaussian:
    """N(x; mean, covariance). mean (B, C, *S), covariance (B, C, C, *S)."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class GaussianFactor:
    """A factor exp(-precision |x - center|^2 / 2 + shift . (x - center)), normalisable or not.

    Quotients of Gaussians are of this form, also where they are no densities (precision <= 0), and a factor with
    precision = shift = 0 is flat. Keeping the centre apart avoids the cancellation of large quadratic terms.

    precision (B, 1, *S or ones), shift (B, C, *S), center (B, C, *S).
    """

    precision: Tensor
    shift: Tensor
    center: Tensor

    def around(self, center: Tensor) -> GaussianFactor:
        """The same factor up to a constant, written around another centre (B, C, *S)."""
        return GaussianFactor(self.precision, self.shift - self.precision * (center - self.center), center)

    def times(self, other: GaussianFactor) -> GaussianFactor:
        """The product of two factors up to a constant, around this one's centre."""
        shift = self.shift + other.around(self.center).shift
        return GaussianFactor(self.precision + other.precision, shift, self.center)

    def gaussian(self) -> IsotropicGaussian:
        """The Gaussian that the factor is up to a constant. The precision must be positive."""
        return IsotropicGaussian(self.center + self.shift / self.precision, 1 / self.precision)


def power(gaussian: IsotropicGaussian, exponent: float) -> GaussianFactor:
    """N(a, p)^exponent up to a constant; a negative exponent divides.

    N(a, p)^i / N(b, q)^j is ``power(a, i).times(power(b, -j))``.
    """
    return GaussianFactor(exponent / gaussian.variance, torch.zeros_like(gaussian.mean), gaussian.mean)


QUOTIENT_FLOOR = 1e-6
"""Smallest q - p by which GMFlow's implementation divides in a quotient of Gaussians; kept, for equal results."""
QUOTIENT_SHARE = 1e-5
"""The floor is no more than this share of q: beside a variance of 1e-6 it would be no floor but a factor that halves
it, and would pull the mean to 0. So it is in many small steps, whose last variances are that small."""


def quotient(numerator: IsotropicGaussian, denominator: IsotropicGaussian) -> GaussianFactor:
    """N(a, p) / N(b, q), p <= q, up to a constant: variance p q / (q - p), mean (q a - p b) / (q - p), centred on b.

    As p -> q the exact factor becomes flat. The implementation to the letter floors q - p at 1e-6 in both, which
    leaves a trace of a factor around 0 instead: with the excess e = max(q - p, 1e-6) - (q - p), the precision is
    1/p - 1/q + e / (p q) and the shift (a - b) / p - e b / (p q). Variances must be positive.
    """
    p, q = numerator.variance, denominator.variance
    gap = torch.maximum(q - p, (QUOTIENT_SHARE * q).clamp(max=QUOTIENT_FLOOR))
    excess = gap - (q - p)
    shift = (numerator.mean - denominator.mean) / p - excess / (p * q) * denominator.mean
    return GaussianFactor(gap / (p * q), shift, denominator.mean)


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of K isotropic Gaussians at every position; see the module for the layout.

    means (B, K, C, *S), log_weights (B, K, 1, *S) normalised over K, variance (B, 1 or K, 1, *S or ones).
    """

    means: Tensor
    log_weights: Tensor
    variance: Tensor

    @property
    def components(self) -> int:
        """K."""
        return self.means.shape[COMPONENT]

    def mean(self) -> Tensor:
        """sum_k pi_k m_k, (B, C, *S)."""
        mean = contract(rows(self.log_weights.exp()).mT, rows(self.means))
        return from_rows(mean, self.means.shape[CHANNEL + 1 :]).squeeze(COMPONENT)

    def moment_matched(self) -> IsotropicGaussian:
        """The isotropic Gaussian with the mixture's mean and mean variance over the C axes.

        variance = sum_k pi_k (v_k + |m_k - mean|^2 / C), (B, 1, *S).
        """
        mean = self.mean()
        around = rows(mean.unsqueeze(COMPONENT))
        # one component at a time, so that the difference is small and stays in the cache
        distances = torch.cat([squared_norm(mean - around) for mean in rows(self.means).split(1, dim=2)], 2)
        spread = from_rows(distances, self.means.shape[CHANNEL + 1 :]) / self.means.shape[CHANNEL]
        variance = (self.log_weights.exp() * (self.variance + spread)).sum(COMPONENT)
        return IsotropicGaussian(mean, variance)

    def moment_matched_full(self) -> FullGaussian:
        """The Gaussian with the mixture's mean and covariance, sum_k pi_k (v_k I + (m_k - mean) (m_k - mean)^T)."""
        mean, weights = self.mean(), self.log_weights.exp()
        offsets = self.means - mean.unsqueeze(COMPONENT)
        spread = torch.einsum("bk...,bkc...,bkd...->bcd...", weights.squeeze(CHANNEL), offsets, offsets)
        identity = torch.eye(mean.shape[1]).to(mean).reshape(*spread.shape[1:3], *[1] * (mean.dim() - 2))
        return FullGaussian(mean, spread + (weights * self.variance).sum(COMPONENT).unsqueeze(1) * identity)

    def log_joint(self, x: Tensor) -> Tensor:
        """log(pi_k N(x; m_k, v_k I)) in nats, (B, K, 1, *S), for x (B, C, *S). The variance must be positive."""
        channels = self.means.shape[CHANNEL]
        distance = from_rows(
            squared_norm(rows(x.unsqueeze(COMPONENT)) - rows(self.means)), self.means.shape[CHANNEL + 1 :]
        )
        log_normal = -0.5 * (distance / self.variance + channels * (math.log(2 * math.pi) + self.variance.log()))
        return self.log_weights + log_normal

    def log_density(self, x: Tensor) -> Tensor:
        """log q(x) in nats, (B, *S), for x (B, C, *S). The variance must be positive."""
        return torch.logsumexp(self.log_joint(x), COMPONENT).squeeze(1)

    def pick(self, uniform: Tensor) -> IsotropicGaussian:
        """The component that uniform (B, 1, *S) in [0, 1) selects by the cumulative weights, at each position."""
        cumulated = self.log_weights.exp().cumsum(COMPONENT)
        # rounding may leave the last sum below 1: beyond it is the last component that adds to it, not one of weight 0
        last = (cumulated < cumulated[:, -1:]).sum(COMPONENT, keepdim=True)
        chosen = (uniform.unsqueeze(COMPONENT) >= cumulated).sum(COMPONENT, keepdim=True).minimum(last)
        variance = self.variance
        if variance.shape[COMPONENT] > 1:
            variance = torch.take_along_dim(variance, chosen, COMPONENT)
        mean = torch.take_along_dim(self.means, chosen, COMPONENT)
        return IsotropicGaussian(mean.squeeze(COMPONENT), variance.squeeze(COMPONENT))

    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """A sample (B, C, *S), a function of the given random numbers, so that the caller owns the randomness.

        uniform (B, 1, *S) in [0, 1) selects the component; normal (B, C, *S) is the noise.
        """
        component = self.pick(uniform)
        return component.mean + component.variance.sqrt() * normal

    def times(self, factor: GaussianFactor) -> GaussianMixture:
        """The normalised product with a Gaussian factor.

        With m' = m_k - center, l the precision, h the shift and g = 1 + v l (which must be positive):
        means center + (m' + v h) / g, variance v / g, weights
        pi_k g^(-C/2) exp((h.m' - l |m'|^2 / 2 + v |h|^2 / 2) / g).
        The terms equal for all components cancel in the normalisation when the variance is shared.
        """
        positions, growth = self.means.shape[CHANNEL + 1 :], 1 + self.variance * factor.precision.unsqueeze(COMPONENT)
        offset, log_weights = self._tilt([factor])
        base = factor.center.unsqueeze(COMPONENT) + self.variance / growth * factor.shift.unsqueeze(COMPONENT)
        means = torch.addcmul(rows(base), offset, rows(1 / growth))
        return GaussianMixture(from_rows(means, positions), from_rows(log_weights, positions), self.variance / growth)

    def mean_times(self, factor: GaussianFactor) -> Tensor:
        """``times(factor).mean()``, (B, C, *S), without the product's means."""
        return self.means_times([factor])[0]

    def means_times(self, factors: Sequence[GaussianFactor]) -> list[Tensor]:
        """`mean_times` each of several factors with one centre, by the same few passes over the means."""
        offset, log_weights = self._tilt(factors)
        weights = log_weights.exp() / self._growth(factors)
        moved = contract(weights.mT, offset) + (weights * rows(self.variance)).sum(2).unsqueeze(-1) * _shifts(factors)
        means = from_rows(moved, self.means.shape[CHANNEL + 1 :]).unbind(COMPONENT)
        return [factor.center + mean for factor, mean in zip(factors, means, strict=True)]

    def _growth(self, factors: Sequence[GaussianFactor]) -> Tensor:
        """g = 1 + v l of M factors, (B, P or 1, 1 or K, M)."""
        return 1 + rows(self.variance) * _precisions(factors)

    def _tilt(self, factors: Sequence[GaussianFactor]) -> tuple[Tensor, Tensor]:
        """m_k - center as rows, and the log-weights (B, P, K, M) of the products with M factors; see `times`."""
        offset = rows(self.means) - rows(factors[0].center.unsqueeze(COMPONENT))
        shift, growth = _shifts(factors), self._growth(factors)
        exponent = (contract(offset, shift.mT) - 0.5 * _precisions(factors) * squared_norm(offset)) / growth
        if self.variance.shape[COMPONENT] > 1:
            spread = rows(self.variance) * squared_norm(shift).mT / growth
            exponent = exponent + 0.5 * (spread - self.means.shape[CHANNEL] * growth.log())
        return offset, torch.log_softmax(rows(self.log_weights) + exponent, 2)

    def product(self, other: GaussianMixture) -> GaussianMixture:
        """The normalised product with another mixture: K K' components, this one's varying slowest.

        With variances v and v': means (v' m_i + v m'_j) / (v + v'), variance v v' / (v + v'), weights
        pi_i pi'_j (v + v')^(-C/2) exp(-|m_i - m'_j|^2 / (2 (v + v'))).
        """
        first, second = self.means.unsqueeze(COMPONENT + 1), other.means.unsqueeze(COMPONENT)
        v, w = self.variance.unsqueeze(COMPONENT + 1), other.variance.unsqueeze(COMPONENT)
        if v.shape[COMPONENT] > 1 or w.shape[COMPONENT + 1] > 1:
            v = v.expand(-1, self.components, other.components, *v.shape[CHANNEL + 1 :])
        total, difference = v + w, second - first
        distance = difference.square().sum(CHANNEL + 1, keepdim=True)
        overlap = -0.5 * (distance / total + self.means.shape[CHANNEL] * total.log())
        log_weights = self.log_weights.unsqueeze(COMPONENT + 1) + other.log_weights.unsqueeze(COMPONENT) + overlap
        return GaussianMixture(
            means=(first + v / total * difference).flatten(1, 2),
            log_weights=torch.log_softmax(log_weights.flatten(1, 2), COMPONENT),
            variance=(v * w / total).flatten(1, 2),
        )

    def affine(self, scale: Tensor | float, offset: Tensor) -> GaussianMixture:
        """The mixture of scale * x + offset: scale a number or broadcastable to (B, 1, *S), offset (B, C, *S)."""
        factor = scale.unsqueeze(COMPONENT) if isinstance(scale, Tensor) else self.means.new_full((1,), scale)
        factor = factor.reshape(*factor.shape, *[1] * (self.means.dim() - factor.dim()))
        means = torch.addcmul(rows(offset.unsqueeze(COMPONENT)), rows(self.means), rows(factor))
        return GaussianMixture(
            means=from_rows(means, self.means.shape[CHANNEL + 1 :]),
            log_weights=self.log_weights,
            variance=factor * factor * self.variance,
        )


def _shifts(factors: Sequence[GaussianFactor]) -> Tensor:
    """Of M factors, (B, P, M, C)."""
    return torch.cat([rows(factor.shift.unsqueeze(COMPONENT)) for factor in factors], 2)


def _precisions(factors: Sequence[GaussianFactor]) -> Tensor:
    """Of M factors, (B, P or 1, 1, M)."""
    return torch.cat([rows(factor.precision.unsqueeze(COMPONENT)) for factor in factors], 3)


def kl_by_sampling(p: GaussianMixture, q: GaussianMixture, uniform: Tensor, normal: Tensor) -> Tensor:
    """An unbiased estimate of KL(p | q) = E_p[log p(x) - log q(x)] in nats, per position: (B, *S).

    uniform (N, B, 1, *S) and normal (N, B, C, *S) give the N samples of p, see `GaussianMixture.draw`.
    """
    samples = [p.draw(*numbers) for numbers in zip(uniform, normal, strict=True)]
    return torch.stack([p.log_density(x) - q.log_density(x) for x in samples]).mean(0)
