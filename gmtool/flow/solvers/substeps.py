"""The sub-steps of GM-ODE on a few numbers a position, however many channels there are.

From t to s a step follows dx/dr = (x_r - E[x | x_r]) / r under one mixture: q(x | x_t), predicted at its start, times
the factor (precision l, shift b) of guidance and second order, if any. With q's mean c, m'_k = m_k - c and
rho_r = x_r - (1 - r) c, that mixture seen at (x_r, r) is (`gmtool.flow.path.bridge_factor`, with e_r = (1 - r) / r^2,
p = l + (1 - r) e_r - (1 - t) e_t and g_k = 1 + v_k p)

    h = b + e_r rho_r - e_t rho_t
    w_k ~ pi_k g_k^(-C/2) exp((h.m'_k - p |m'_k|^2 / 2 + v_k |h|^2 / 2) / g_k)
    E[x | x_r] - c = sum_k w_k (m'_k + v_k h) / g_k

and a sub-step onto r' is rho_r' = (r' / r) rho_r + (1 - r' / r) (E[x | x_r] - c). So rho_r stays in the span of the
m'_k, rho_t and b, and with it every mean along the way. Its coordinates are either those of the C channels (`Axes`, at
2 K C multiplications a sub-step) or, where the channels are many, those of the spanning vectors (`Span`): all that the
channels then enter by are the vectors' inner products. One pass over the means takes the products, the sub-steps cost
O(K^2) a position, and one pass combines the result. Centred on c the products do not cancel where the means are nearly
equal.

Source: GMFlow, arXiv 2504.05304, section 3.3 and appendix A.3; the reduction to coordinates is ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gmtool.mixture.gaussian_mixture import (
    CHANNEL,
    COMPONENT,
    GaussianFactor,
    GaussianMixture,
    contract,
    from_rows,
    rows,
)


class Coordinates(Protocol):
    """Vectors of a position as n numbers each, (n, N): the N positions of all samples lie innermost."""

    def given(self, index: int) -> Tensor:
        """The vector of that index among those that the coordinates were made with, (n, N)."""

    def squares(self) -> Tensor:
        """|m'_k|^2, (K, N)."""

    def inner(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The inner products of a vector with the m'_k, (K, N), and with itself, (N,)."""

    def combine(self, weights: Tensor) -> Tensor:
        """sum_k w_k m'_k, (n, N), for weights (K, N)."""

    def restore(self, vectors: list[Tensor]) -> list[Tensor]:
        """Vectors (n, N) as rows (B, P, 1, C)."""


@dataclass(frozen=True)
class Axes:
    """Coordinates by channel, n = C. offsets m'_k (K, C, N); vectors, the given ones (C, N); batch B."""

    offsets: Tensor
    vectors: tuple[Tensor, ...]
    batch: int

    def given(self, index: int) -> Tensor:
        """See `Coordinates`."""
        return self.vectors[index]

    def squares(self) -> Tensor:
        """See `Coordinates`."""
        return self.offsets.square().sum(1)

    def inner(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """See `Coordinates`."""
        return (self.offsets * vector).sum(1), vector.square().sum(0)

    def combine(self, weights: Tensor) -> Tensor:
        """See `Coordinates`."""
        return (self.offsets * weights.unsqueeze(1)).sum(0)

    def restore(self, vectors: list[Tensor]) -> list[Tensor]:
        """See `Coordinates`."""
        return [each.T.reshape(self.batch, -1, 1, len(each)) for each in vectors]


@dataclass(frozen=True)
class Span:
    """Coordinates in the vectors m'_1 ... m'_K and the J given ones, n = K + J.

    offsets m'_k (B, P, K, C); vectors, the given ones (B, P, 1, C); products (n, n, N), all their inner products.
    """

    offsets: Tensor
    vectors: tuple[Tensor, ...]
    products: Tensor

    @property
    def components(self) -> int:
        """K."""
        return self.offsets.shape[2]

    def given(self, index: int) -> Tensor:
        """See `Coordinates`."""
        unit = torch.zeros_like(self.products[0])
        unit[self.components + index] = 1
        return unit

    def squares(self) -> Tensor:
        """See `Coordinates`."""
        return self.products.diagonal().T[: self.components]

    def inner(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """See `Coordinates`."""
        each = (self.products * vector).sum(1)
        return each[: self.components], (vector * each).sum(0)

    def combine(self, weights: Tensor) -> Tensor:
        """See `Coordinates`."""
        return torch.cat([weights, weights.new_zeros(len(self.vectors), weights.shape[1])])

    def restore(self, vectors: list[Tensor]) -> list[Tensor]:
        """See `Coordinates`: one pass over the m'_k for all vectors."""
        batch, positions = self.offsets.shape[:2]
        of_offsets, of_given = torch.stack(vectors).split([self.components, len(self.vectors)], dim=1)
        # (vectors, K, B P) -> (B, P, vectors, K)
        weights = of_offsets.reshape(len(vectors), -1, batch, positions).permute(2, 3, 0, 1)
        found = list(contract(weights, self.offsets).split(1, dim=2))
        for i, coefficients in enumerate(of_given):
            for coefficient, each in zip(coefficients, self.vectors, strict=True):
                found[i] = torch.addcmul(found[i], coefficient.reshape(batch, positions, 1, 1), each)
        return found


def axes_of(offsets: Tensor, vectors: Sequence[Tensor]) -> Axes:
    """The m'_k (B, P, K, C) and further vectors, each (B, P, 1, C), by channel."""
    inner = offsets.flatten(0, 1).permute(1, 2, 0).contiguous()
    return Axes(inner, tuple(each.flatten(0, 2).T.contiguous() for each in vectors), len(offsets))


def span_of(offsets: Tensor, vectors: Sequence[Tensor]) -> Span:
    """The same by inner products."""
    few = torch.cat(list(vectors), 2)
    cross = contract(offsets, few.mT)
    top = torch.cat([contract(offsets, offsets.mT), cross], -1)
    bottom = torch.cat([cross.mT, contract(few, few.mT)], -1)
    products = torch.cat([top, bottom], -2).flatten(0, 1).permute(1, 2, 0).contiguous()
    return Span(offsets, tuple(vectors), products)


def coordinates_of(offsets: Tensor, vectors: Sequence[Tensor]) -> Coordinates:
    """Whichever takes fewer multiplications a sub-step."""
    components, channels = offsets.shape[2:]
    by_channel = 2 * components * channels <= (components + len(vectors)) ** 2
    return axes_of(offsets, vectors) if by_channel else span_of(offsets, vectors)


@dataclass(frozen=True)
class Bridge:
    """q(x | x_r) at every (x_r, r), r <= t, from q(x | x_t), in coordinates around q's mean c.

    log_weights (K, N), variance (1 or K, N), squares |m'_k|^2 (K, N), channels C, time t, start rho_t (n, N).
    """

    coordinates: Coordinates
    log_weights: Tensor
    variance: Tensor
    squares: Tensor
    channels: int
    time: float
    start: Tensor

    def mean(self, point: Tensor, r: float, tilt: Tilt | None) -> Tensor:
        """E[x | x_r] - c, (n, N), at the ``point`` rho_r (n, N), under q times the ``tilt``; see the module."""
        gained, evidence = (1 - r) / r**2, (1 - self.time) / self.time**2
        shift = gained * point - evidence * self.start
        precision: Tensor | float = (1 - r) * gained - (1 - self.time) * evidence
        if tilt is not None:
            shift, precision = shift + tilt.shift, precision + tilt.precision
        growth = 1 + self.variance * precision
        inner, length = self.coordinates.inner(shift)
        exponent = (inner - 0.5 * precision * self.squares) / growth
        if len(self.variance) > 1:
            exponent = exponent + 0.5 * (self.variance * length / growth - self.channels * growth.log())
        weights = torch.softmax(self.log_weights + exponent, 0) / growth
        return self.coordinates.combine(weights) + (weights * self.variance).sum(0) * shift


@dataclass(frozen=True)
class Tilt:
    """A Gaussian factor around c in coordinates: precision l (N,), shift b (n, N)."""

    precision: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Followed:
    """The end of a step, x (B, C, *S), and E[x | x_s] there under the remembered mixture, where that was asked for."""

    x: Tensor
    mean: Tensor | None


def follow(
    mixture: GaussianMixture,
    x: Tensor,
    points: Sequence[float],
    factor: GaussianFactor | None = None,
    remembered: GaussianFactor | None = None,
    *,
    mean: Tensor | None = None,
    look_ahead: bool = False,
) -> Followed:
    """x at the last of the times ``points`` = t > ... > s >= 0, from x (B, C, *S) at the first.

    points: at least two, the sub-steps' grid; t in (0, 1]. The flow is that of q(x | x_t), ``mixture``, times
    ``factor``. look_ahead: also give E[x | x_s] at the end, for s > 0, under q times ``remembered``. mean: that of the
    mixture, where it is known.
    """
    start, stop = points[0], points[-1]
    center = mixture.mean() if mean is None else mean
    residual = x - (1 - start) * center
    if len(points) == 2 and factor is None and not look_ahead:
        # the first sub-step goes straight to the mean: nothing else is needed
        return Followed((1 - stop) * center + stop / start * residual, None)
    known = [each for each in (factor, remembered) if each is not None]
    bridge, tilts = _bridge(mixture, center, residual, known, start)
    tilt = tilts[0] if factor is not None else None
    point = bridge.start
    for time, after in itertools.pairwise(points):
        point = after / time * point + (1 - after / time) * bridge.mean(point, time, tilt)
    ends = [point]
    if look_ahead:
        ends.append(bridge.mean(point, stop, tilts[-1] if remembered is not None else None))
    found = [from_rows(each, x.shape[2:]).squeeze(COMPONENT) for each in bridge.coordinates.restore(ends)]
    return Followed((1 - stop) * center + found[0], center + found[1] if look_ahead else None)


def _bridge(
    mixture: GaussianMixture, center: Tensor, residual: Tensor, factors: Sequence[GaussianFactor], start: float
) -> tuple[Bridge, list[Tilt]]:
    """The bridge from q(x | x_t), and the factors in its coordinates."""
    offsets = rows(mixture.means) - rows(center.unsqueeze(COMPONENT))
    moved = [each.around(center) for each in factors]
    vectors = [rows(each.unsqueeze(COMPONENT)) for each in (residual, *(each.shift for each in moved))]
    coordinates = coordinates_of(offsets, vectors)
    positions = offsets.shape[1]
    bridge = Bridge(
        coordinates=coordinates,
        log_weights=_innermost(mixture.log_weights.squeeze(CHANNEL), positions),
        variance=_innermost(mixture.variance.squeeze(CHANNEL), positions),
        squares=coordinates.squares(),
        channels=offsets.shape[-1],
        time=start,
        start=coordinates.given(0),
    )
    tilts = [
        Tilt(_innermost(each.precision, positions).squeeze(0), coordinates.given(1 + i)) for i, each in enumerate(moved)
    ]
    return bridge, tilts


def _innermost(x: Tensor, positions: int) -> Tensor:
    """(B, k, *S or ones) as (k, N)."""
    return x.reshape(*x.shape[:2], -1).expand(-1, -1, positions).transpose(0, 1).flatten(1)
