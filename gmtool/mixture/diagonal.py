"""Gaussian mixtures with diagonal covariances, their log-densities, and the most probable modes of a sample.

    p(x) = sum_k w_k N(x; m_k, diag v_k),    p(k | x) = w_k N(x; m_k, diag v_k) / p(x)

Both come from matrix products, x^2 and x against -1/2v and m/v, in the precision of the data. The expanded squares lose
digits where a mean is far from the origin in units of its mode's spread: data should be centred, and the modes that are
so narrow all the same (`PRECISION`) are taken in float64. Source: MM-FM (Luo et al., CVPR 2026), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gmtool.errors import UserError

NEGLIGIBLE = 1e-4
"""A kept mode less probable than this is dropped."""

SMALLEST = -80.0
"""Least logarithm of a responsibility in a sum, relative to the sample's largest: 2e-35, about the least of float32."""

PRECISION, LARGEST_ERROR = 1e-3, 1.0
"""Errors of a log-density, in nats: up to the first it is computed in the precision of the data, beyond the second not
even in float64. The error is about a precision's epsilon times m^2 / v, summed over dimensions: terms of that size
cancel."""


@dataclass(frozen=True)
class DiagonalMixture:
    """weights (K,), means (K, D), variances (K, D), float64 on one device. A mode of weight 0 is empty."""

    weights: Tensor
    means: Tensor
    variances: Tensor


class LogDensity:
    """log w_k N(x; m_k, v_k) of data (B, D), and their squares: (B, K) and (B, D), in a precision.

    The results are good until the next call, which writes where they are. narrow (n,): the modes that need float64.
    """

    def __init__(self, mixture: DiagonalMixture, dtype: torch.dtype) -> None:
        means, variances = mixture.means, mixture.variances
        distances = means.square() / variances
        _expect_spread(means, distances.sum(1))
        constant = mixture.weights.log() - 0.5 * (math.log(2 * math.pi) + variances.log() + distances).sum(1)
        coefficients = (constant, (-0.5 / variances).T, (means / variances).T)
        self._constant, self._of_squares, self._of_values = (coefficient.to(dtype) for coefficient in coefficients)
        need_more = distances.sum(1) * torch.finfo(dtype).eps > PRECISION
        self.narrow = need_more.nonzero()[:, 0] if dtype != torch.float64 else constant.new_empty(0, dtype=torch.int64)
        self._of_narrow = tuple(coefficient[..., self.narrow] for coefficient in coefficients)
        self._joint = self._squares = self._constant.new_empty(0, 0)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The log-densities and the squares of data x (B, D)."""
        if len(x) > len(self._joint):
            # once: new memory costs as much as what is done in it
            self._joint, self._squares = x.new_empty(len(x), len(self._constant)), torch.empty_like(x)
        squares = torch.mul(x, x, out=self._squares[: len(x)])
        joint = torch.addmm(self._constant, squares, self._of_squares, out=self._joint[: len(x)])
        joint.addmm_(x, self._of_values)
        if len(self.narrow):
            values, (constant, of_squares, of_values) = x.double(), self._of_narrow
            exact = torch.addmm(constant, values.square(), of_squares).addmm_(values, of_values)
            joint[:, self.narrow] = exact.clamp_(min=torch.finfo(x.dtype).min).to(x.dtype)
        return joint, squares


def _expect_spread(means: Tensor, distances: Tensor) -> None:
    """Raise UserError for modes whose squared distance from the origin (K,), in units of their spread, is too large."""
    epsilon = torch.finfo(torch.float64).eps
    flat = ~(distances * epsilon <= LARGEST_ERROR)  # also NaN, where mean and variance are 0
    if bool(flat.any()):
        least = max(1e-6, float(means[flat].square().sum(1).max()) * epsilon / LARGEST_ERROR)
        raise UserError(
            f"{int(flat.sum())} of {len(flat)} modes have no spread along some dimension of the descriptors, or too "
            f"little to compute with: use --variance-floor {10 ** math.ceil(math.log10(least)):g}, or fewer --modes"
        )


def exponentials(joint: Tensor, highest: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """exp(joint - row maximum) in place of joint (B, K), its sums over modes (B, 1), and log-sum-exp (B, 1) of joint.

    Exponents stop at `SMALLEST`: exponentials that underflow take ten times as long, and most would.
    """
    highest = joint.amax(1, keepdim=True) if highest is None else highest
    powers = joint.sub_(highest).clamp_(min=SMALLEST).exp_()
    norm = powers.sum(1, keepdim=True)
    return powers, norm, norm.log().add_(highest)


@dataclass(frozen=True)
class Posterior:
    """The modes of N samples.

    modes (N, n) int32 and probabilities (N, n) float32: the n most probable modes, most probable first, renormalised;
    both 0 beyond a sample's last kept mode. log_likelihood (N,) float64: log p(x), nats.
    """

    modes: Tensor
    probabilities: Tensor
    log_likelihood: Tensor

    def cpu(self) -> Posterior:
        """The posterior on the CPU."""
        return Posterior(self.modes.cpu(), self.probabilities.cpu(), self.log_likelihood.cpu())


class ModePosterior:
    """p(k | x) of samples on the mixture's device, cut to the ``keep`` most probable modes (at most K), renormalised.

    Modes of a share below `NEGLIGIBLE` are dropped. dtype: of the data.
    """

    def __init__(self, mixture: DiagonalMixture, keep: int, dtype: torch.dtype = torch.float32) -> None:
        self._keep = min(keep, len(mixture.weights))
        self._density = LogDensity(mixture, dtype)

    def __call__(self, x: Tensor) -> Posterior:
        """The modes of samples x (B, D)."""
        joint, _ = self._density(x)
        best, which = joint.topk(self._keep, dim=1)
        kept = best.softmax(1)
        kept = torch.where(kept < NEGLIGIBLE, 0.0, kept)
        return Posterior(
            torch.where(kept > 0, which, 0).to(torch.int32),
            (kept / kept.sum(1, keepdim=True)).float(),
            exponentials(joint)[2][:, 0].double(),
        )


def posterior(blocks: Iterable[Tensor], mixture: DiagonalMixture, keep: int) -> Posterior:
    """The ``keep`` most probable modes of each sample (at most K), and its log-likelihood, of data in blocks (B, D).

    The result is on the CPU.
    """
    keep = min(keep, len(mixture.weights))
    nothing = torch.empty(0, keep)  # a process may have no block
    parts = [Posterior(nothing.to(torch.int32), nothing, torch.empty(0, dtype=torch.float64))]
    of_modes: ModePosterior | None = None
    for x in blocks:
        of_modes = of_modes or ModePosterior(mixture, keep, x.dtype)
        parts.append(of_modes(x).cpu())
    return Posterior(
        torch.cat([part.modes for part in parts]),
        torch.cat([part.probabilities for part in parts]),
        torch.cat([part.log_likelihood for part in parts]),
    )
