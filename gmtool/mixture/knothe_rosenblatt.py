"""Knothe-Rosenblatt maps between a Gaussian mixture and the standard Gaussian.

Coordinate by coordinate along the mixture's principal axes (the eigenvectors of its covariance averaged over positions,
eigenvalues descending), with the weights conditioned on the coordinates before,

    z_i = Phi^-1(F_i(y_i)),    F_i(y) = sum_k w_k Phi((y - m_ki) / std_k),    w_k ~ pi_k prod_{j < i} N(y_j; m_kj, v_k)

turns a sample of the mixture into z ~ N(0, I). z is in the coordinates of the axes. Both maps are differentiable in the
sample and in the mixture, the inverse by the implicit function theorem; the axes are constants to them.

Many channels make the whole map long, so that one may transport the leading axes alone. The others then take the noise
of one component, y = m_k + std_k z, with k drawn from the weights given the transported coordinates (from Gaussian) or
given the whole sample (to Gaussian). The distributions are exact either way, but only the transported coordinates are
inverted by the other map.

Source: GMFlow, arXiv 2504.05304, appendix A.5; Rosenblatt, Annals of Mathematical Statistics 23 (1952).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmtool.mixture.gaussian_mixture import CHANNEL, COMPONENT, GaussianMixture, contract, rows

MOST_STEPS = 200
"""Largest number of steps of Newton's method or bisection; far fewer suffice for finite numbers."""

SUBSPACE_MARGIN, SUBSPACE_STEPS = 4, 16
"""Width of the iterated subspace in leading axes, and its iterations."""

SMALLEST_LOG = {torch.float32: -80.0, torch.float64: -700.0}
"""Logarithms above this have exponentials of full precision."""


def principal_axes(mixture: GaussianMixture, leading: int | None = None) -> Tensor:
    """Orthonormal axes (B, C, C), one a row: the eigenvectors of the covariance averaged over positions, descending.

    The largest entry of each is positive, for an eigenvector's sign is free. leading: only so many of them need be
    eigenvectors; any others that complete the basis do for the rest, and are made by reflections of the channels' own
    axes.
    """
    around = rows(mixture.mean().unsqueeze(COMPONENT))
    # the components' own variance is isotropic: it moves no axis
    offsets = (rows(mixture.means) - around).detach().flatten(1, 2)
    weighted = rows(mixture.log_weights.exp()).detach().flatten(1, 2) * offsets
    covariance = contract(weighted.mT, offsets) / around.shape[1]
    channels = covariance.shape[1]
    if leading is None or SUBSPACE_MARGIN * leading >= channels:
        axes = torch.linalg.eigh(covariance).eigenvectors.flip(-1).mT
        return axes * _signs(axes)
    first = _leading_eigenvectors(covariance, leading)
    rest = torch.linalg.qr(first.mT, mode="complete").Q.mT[:, leading:]
    return torch.cat([first * _signs(first), rest], 1)


def _signs(axes: Tensor) -> Tensor:
    """The sign of each axis's largest entry, (B, n, 1)."""
    return axes.gather(-1, axes.abs().argmax(-1, keepdim=True)).sign()


def _leading_eigenvectors(covariance: Tensor, count: int) -> Tensor:
    """Orthonormal rows (B, count, C) near the leading eigenvectors, by iteration of a subspace.

    It is `SUBSPACE_MARGIN` times as wide as asked for. What is missing where eigenvalues nearly agree costs no
    exactness: the maps take any axes.
    """
    widest = covariance.diagonal(dim1=1, dim2=2).topk(SUBSPACE_MARGIN * count).indices
    subspace = covariance.gather(2, widest.unsqueeze(1).expand(-1, covariance.shape[1], -1))
    for _ in range(SUBSPACE_STEPS):
        subspace = contract(covariance, torch.linalg.qr(subspace).Q)
    basis = torch.linalg.qr(subspace).Q
    inside = torch.linalg.eigh(contract(basis.mT, contract(covariance, basis))).eigenvectors.flip(-1)
    return contract(basis, inside[:, :, :count]).mT


def to_gaussian(
    mixture: GaussianMixture, x: Tensor, axes: Tensor, leading: int | None = None, uniform: Tensor | None = None
) -> Tensor:
    """z (B, C, *S), in the coordinates of the axes: standard normal when x (B, C, *S) is a draw from the mixture.

    axes (B, C, C) orthonormal rows. leading: how many of them are transported, all by default; where that is not all,
    uniform (B, 1, *S) in [0, 1) draws the component whose noise the others take. Raises ValueError without it.
    """
    count = _transported(axes, leading, uniform)
    y, means, std = _rotate(axes[:, :count], x), _rotate_means(axes[:, :count], mixture), _std(mixture)
    log_weights = mixture.log_weights.squeeze(CHANNEL)
    z = []
    for i in range(count):
        scaled = (y[:, i : i + 1] - means[:, :, i]) / std
        z.append(_score(log_weights, scaled))
        log_weights = _given(log_weights, scaled, std)
    if uniform is not None and count < axes.shape[1]:
        component = _posterior(mixture, x).pick(uniform)
        z.append(_rotate(axes[:, count:], (x - component.mean) / component.variance.sqrt()))
    return torch.cat(z, 1)


def from_gaussian(
    mixture: GaussianMixture, z: Tensor, axes: Tensor, leading: int | None = None, uniform: Tensor | None = None
) -> Tensor:
    """x (B, C, *S), a draw from the mixture when z (B, C, *S) is standard normal; the arguments of `to_gaussian`."""
    count = _transported(axes, leading, uniform)
    means, std = _rotate_means(axes[:, :count], mixture), _std(mixture)
    log_weights = mixture.log_weights.squeeze(CHANNEL)
    y = []
    for i in range(count):
        value = _solve(log_weights, means[:, :, i], std, z[:, i : i + 1])
        y.append(value)
        log_weights = _given(log_weights, (value - means[:, :, i]) / std, std)
    lead = torch.cat(y, 1)
    if uniform is None or count == axes.shape[1]:
        return _rotate(axes.mT, lead)
    rest = _rotate(axes[:, count:].mT, z[:, count:])
    drawn = GaussianMixture(mixture.means, log_weights.unsqueeze(CHANNEL), mixture.variance).draw(uniform, rest)
    return drawn + _rotate(axes[:, :count].mT, lead - _rotate(axes[:, :count], drawn))


def _transported(axes: Tensor, leading: int | None, uniform: Tensor | None) -> int:
    channels = axes.shape[1]
    count = channels if leading is None else leading
    if not 1 <= count <= channels:
        raise ValueError(f"leading must lie in 1 ... {channels}, got {leading}")
    if count < channels and uniform is None:
        raise ValueError(f"{count} of {channels} axes leave components to draw: give uniform numbers")
    return count


def _rotate(axes: Tensor, x: Tensor) -> Tensor:
    """axes (B, n, C) times x (B, C, *S): (B, n, *S)."""
    return torch.einsum("bnc,bc...->bn...", axes, x)


def _rotate_means(axes: Tensor, mixture: GaussianMixture) -> Tensor:
    """The means in the coordinates of the axes, (B, K, n, *S)."""
    return torch.einsum("bnc,bkc...->bkn...", axes, mixture.means)


def _std(mixture: GaussianMixture) -> Tensor:
    """(B, 1 or K, *S or ones)."""
    return mixture.variance.sqrt().squeeze(CHANNEL)


def _posterior(mixture: GaussianMixture, x: Tensor) -> GaussianMixture:
    """The mixture with the weights of its components given a sample x."""
    log_weights = torch.log_softmax(mixture.log_joint(x), COMPONENT)
    return GaussianMixture(mixture.means, log_weights, mixture.variance)


def _given(log_weights: Tensor, scaled: Tensor, std: Tensor) -> Tensor:
    """The weights conditioned on one more coordinate, scaled = (y - m_k) / std_k (B, K, *S)."""
    return torch.log_softmax(log_weights - 0.5 * scaled.square() - std.log(), COMPONENT)


def _score(log_weights: Tensor, scaled: Tensor) -> Tensor:
    """Phi^-1(sum_k w_k Phi(scaled_k)), (B, 1, *S), by whichever tail is the smaller.

    The derivative of z = Phi^-1(P) by log P is P / phi(z), the Mills ratio; it is attached here, because that of the
    inverse itself is lost where P underflows.
    """
    below = torch.logsumexp(log_weights + torch.special.log_ndtr(scaled), COMPONENT, keepdim=True)
    above = torch.logsumexp(log_weights + torch.special.log_ndtr(-scaled), COMPONENT, keepdim=True)
    lower = below < above
    tail = torch.where(lower, below, above)
    z = _normal_quantile(tail.detach())
    z = z + _mills(z) * (tail - tail.detach())
    return torch.where(lower, z, -z)


def _normal_quantile(log_p: Tensor) -> Tensor:
    """z <= 0 with log Phi(z) = log_p <= log 1/2: a first guess polished by Newton's method on log Phi."""
    far = log_p < SMALLEST_LOG[log_p.dtype]
    z = torch.where(far, -(-2 * log_p).sqrt(), torch.special.ndtri(log_p.exp()))
    for _ in range(3):
        z = z - (torch.special.log_ndtr(z) - log_p) * _mills(z)
    return z


def _mills(z: Tensor) -> Tensor:
    """Phi(z) / phi(z), without overflow for z <= 0."""
    return math.sqrt(math.pi / 2) * torch.special.erfcx(-z / math.sqrt(2))


def _slope(log_weights: Tensor, scaled: Tensor, std: Tensor, z: Tensor) -> Tensor:
    """dz/dy = q(y) / phi(z) for one coordinate; the two normalisations of 2 pi cancel."""
    log_density = torch.logsumexp(log_weights - 0.5 * scaled.square() - std.log(), COMPONENT, keepdim=True)
    return (log_density + 0.5 * z.square()).exp()


def _solve(log_weights: Tensor, means: Tensor, std: Tensor, z: Tensor) -> Tensor:
    """The coordinate y (B, 1, *S) whose score is z, with the derivatives of an implicit function.

    From score(y, mixture) = z follows dy = (dz - d score / d mixture) / slope.
    """
    with torch.no_grad():
        y, slope = _bracketed_newton(log_weights, means, std, z)
    change = (z - _score(log_weights, (y - means) / std)) / slope
    return y + (change - change.detach())


def _bracketed_newton(log_weights: Tensor, means: Tensor, std: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """y with score(y) = z, and the slope there. Newton's method, halving the bracket where it is left or too slow.

    The quantiles m_k + std_k z of the components bracket that of the mixture. Each step is at most half as long as
    the one before or halves the bracket, so that some twice the bits of the mantissa are the most that it takes.
    """
    quantiles = means + std * z
    present = log_weights > -torch.inf
    low = quantiles.masked_fill(~present, torch.inf).amin(COMPONENT, keepdim=True)
    high = quantiles.masked_fill(~present, -torch.inf).amax(COMPONENT, keepdim=True)
    y = (log_weights.exp() * quantiles).sum(COMPONENT, keepdim=True).clamp(low, high)
    resolution = 2 * torch.finfo(z.dtype).eps * (quantiles.abs() + std).amax(COMPONENT, keepdim=True)
    length = high - low
    slope = torch.ones_like(y)
    for _ in range(MOST_STEPS):
        scaled = (y - means) / std
        score = _score(log_weights, scaled)
        slope = _slope(log_weights, scaled, std, score)
        low, high = torch.where(score <= z, y, low), torch.where(score >= z, y, high)
        newton = y - (score - z) / slope
        settled = ((newton - y).abs() <= resolution) | (high - low <= resolution)
        if settled.all():
            break
        good = (newton >= low) & (newton <= high) & ((newton - y).abs() <= 0.5 * length)
        following = torch.where(settled, y, torch.where(good, newton, 0.5 * (low + high)))
        length = (following - y).abs()
        y = following
    return y, slope
