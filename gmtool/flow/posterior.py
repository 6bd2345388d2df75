"""q(x | x_t), a mixture over the data, seen from every later point x_r, r < t: its mean in closed form.

By Bayes' rule q(x | x_r) is q(x | x_t) times N(x_r; alpha_r x, sigma_r^2) / N(x_t; alpha_t x, sigma_t^2), and so a
mixture again (GMFlow, section 3.3 and appendix A.3). `DirectPosterior` is this definition. `ReducedPosterior` is the
same function on a few numbers per position, however many channels there are; the reduction is this project's own:

From t on a step follows dx/dr = (x_r - E[x | x_r]) / r under one mixture: q(x | x_t) times the factor (precision l,
shift b) of guidance and second order, if any. With q's mean c, m'_k = m_k - c and rho_r = x_r - (1 - r) c, that mixture
seen at (x_r, r) is, with e_r = (1 - r) / r^2, p = l + (1 - r) e_r - (1 - t) e_t and g_k = 1 + v_k p,

    h = b + e_r rho_r - e_t rho_t
    w_k ~ pi_k g_k^(-C/2) exp((h.m'_k - p |m'_k|^2 / 2 + v_k |h|^2 / 2) / g_k)
    E[x | x_r] - c = sum_k w_k (m'_k + v_k h) / g_k

and an Euler step onto r' is rho_r' = (r' / r) rho_r + (1 - r' / r) (E[x | x_r] - c). So rho_r stays in the span of the
m'_k, rho_t and b, and with it every mean along the way. These vectors are known either by their C channels (`Axes`,
at 2 K C multiplications a mean) or, where the channels are many, by their coefficients (`Span`): all that the channels
then enter by are the vectors' inner products. One pass over the means takes the products, a mean costs O(K^2) a
position, and one pass combines the result. Centred on c the products do not cancel where the means are nearly equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from gmtool.flow.path import bridge_factor
from gmtool.flow.times import expand
from gmtool.mixture.gaussian_mixture import (
    CHANNEL,
    COMPONENT,
    GaussianFactor,
    GaussianMixture,
    contract,
    from_rows,
    rows,
)

Time = float | Tensor
"""A time of all samples, or one per position, (N,): those of all samples in a row."""


CACHED_NUMBERS = 1 << 18
"""Numbers that are worked on together on a CPU: few enough to stay in the cache."""


class Posterior(Protocol):
    """q(x | x_t) seen from every later point. Points and means are in a form of the posterior's own.

    The form is linear: r' / r times a point plus 1 - r' / r times a mean is the point of an Euler step onto r'.
    """

    @property
    def start(self) -> Tensor:
        """x_t."""

    def mean_at(self, point: Tensor, r: float) -> Tensor:
        """E[x | x_r] for the point x_r, 0 < r <= t; both stand for tensors (B, C, *S), see `lift`."""

    def lift(self, r: float, point: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """A point x_r, and a mean if there is one, as tensors (B, C, *S)."""


@dataclass(frozen=True)
class DirectPosterior:
    """The definition: at every point the mixture q(x | x_t), (x_t (B, C, *S), t), is multiplied by the bridge."""

    mixture: GaussianMixture
    x_t: Tensor
    t: float

    @property
    def start(self) -> Tensor:
        """See `Posterior.start`."""
        return self.x_t

    def mean_at(self, point: Tensor, r: float) -> Tensor:
        """See `Posterior.mean_at`."""
        x = self.x_t
        bridge = bridge_factor(point, expand(r, x), x, expand(self.t, x), center=self.mixture.mean())
        return self.mixture.mean_times(bridge)

    def lift(self, _r: float, point: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See `Posterior.lift`: they are tensors already."""
        return point, mean


class Vectors(Protocol):
    """Vectors of a position as n numbers each, (n, N): the N positions of all samples lie innermost."""

    def given(self, index: int) -> Tensor:
        """The vector of that index among those that the coordinates were made with, (n, N)."""

    def holding(self, vector: Tensor) -> tuple[Vectors, Tensor]:
        """Coordinates that a further vector (B, P, 1, C) can be written in, the last of n, and the vector in them."""

    def squares(self) -> Tensor:
        """|m'_k|^2, (K, N)."""

    def inner(self, vector: Tensor) -> Tensor:
        """The inner products of a vector with the m'_k, (K, N)."""

    def square(self, vector: Tensor) -> Tensor:
        """The inner product of a vector with itself, (N,)."""

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
        """See `Vectors`."""
        return self.vectors[index]

    def holding(self, vector: Tensor) -> tuple[Axes, Tensor]:
        """See `Vectors`: these hold any."""
        return self, vector.flatten(0, 2).T.contiguous()

    def squares(self) -> Tensor:
        """See `Vectors`."""
        return self.offsets.square().sum(1)

    def inner(self, vector: Tensor) -> Tensor:
        """See `Vectors`."""
        return (self.offsets * vector).sum(1)

    def square(self, vector: Tensor) -> Tensor:
        """See `Vectors`."""
        return vector.square().sum(0)

    def combine(self, weights: Tensor) -> Tensor:
        """See `Vectors`."""
        return (self.offsets * weights.unsqueeze(1)).sum(0)

    def restore(self, vectors: list[Tensor]) -> list[Tensor]:
        """See `Vectors`."""
        return [vector.T.reshape(self.batch, -1, 1, len(vector)) for vector in vectors]


@dataclass(frozen=True)
class Span:
    """Coordinates in the vectors m'_1 ... m'_K and the J given ones, n = K + J.

    means m_k (B, P, K, C) around center c (B, P, 1, C); vectors, the given ones (B, P, J, C); products (N, n, n), all
    inner products.
    """

    means: Tensor
    center: Tensor
    vectors: Tensor
    products: Tensor

    @property
    def components(self) -> int:
        """K."""
        return self.means.shape[2]

    def given(self, index: int) -> Tensor:
        """See `Vectors`."""
        count, size, _ = self.products.shape
        unit = self.products.new_zeros(size, count)
        unit[self.components + index] = 1
        return unit

    def holding(self, vector: Tensor) -> tuple[Span, Tensor]:
        """See `Vectors`: a pass over the means finds the new vector's products."""
        (across,) = _in_blocks(lambda offsets, other: (contract(offsets, other.mT),), self.means, self.center, vector)
        side = torch.cat([across, contract(self.vectors, vector.mT).flatten(0, 1)], 1)
        products = _bordered(self.products, side, contract(vector, vector.mT).flatten(0, 1))
        wider = Span(self.means, self.center, torch.cat([self.vectors, vector], 2), products)
        return wider, wider.given(self.vectors.shape[2])

    def squares(self) -> Tensor:
        """See `Vectors`."""
        return self.products.diagonal(dim1=1, dim2=2).T[: self.components].contiguous()

    def inner(self, vector: Tensor) -> Tensor:
        """See `Vectors`."""
        return contract(vector.T.contiguous().unsqueeze(1), self.products[..., : self.components]).squeeze(1).T

    def square(self, vector: Tensor) -> Tensor:
        """See `Vectors`."""
        return (vector * contract(vector.T.contiguous().unsqueeze(1), self.products).squeeze(1).T).sum(0)

    def combine(self, weights: Tensor) -> Tensor:
        """See `Vectors`."""
        return pad(weights, (0, 0, 0, self.vectors.shape[2]))

    def restore(self, vectors: list[Tensor]) -> list[Tensor]:
        """See `Vectors`: one pass over the means for all vectors."""
        batch, positions, components, _ = self.means.shape
        # (vectors, n, B P) -> (B, P, vectors, n)
        numbers = torch.stack(vectors).unflatten(2, (batch, positions)).permute(2, 3, 0, 1)
        of_means, of_given = numbers.split([components, self.vectors.shape[2]], 3)
        around = contract(of_means, self.means) - of_means.sum(3, keepdim=True) * self.center
        return list((around + contract(of_given, self.vectors)).split(1, 2))


def axes_of(means: Tensor, center: Tensor, vectors: Sequence[Tensor]) -> Axes:
    """The m'_k of means (B, P, K, C) around center (B, P, 1, C), and further vectors like it, by channel."""
    inner = (means - center).flatten(0, 1).permute(1, 2, 0).contiguous()
    return Axes(inner, tuple(vector.flatten(0, 2).T.contiguous() for vector in vectors), len(means))


def span_of(means: Tensor, center: Tensor, vectors: Sequence[Tensor]) -> Span:
    """The m'_k of means (B, P, K, C) around center (B, P, 1, C), and J further vectors like it, by inner products."""
    few = torch.cat(list(vectors), 2)
    inner, across = _in_blocks(
        lambda offsets, others: (contract(offsets, offsets.mT), contract(offsets, others.mT)), means, center, few
    )
    return Span(means, center, few, _bordered(inner, across, contract(few, few.mT).flatten(0, 1)))


def _in_blocks(
    products: Callable[[Tensor, Tensor], tuple[Tensor, ...]], means: Tensor, center: Tensor, vectors: Tensor
) -> list[Tensor]:
    """``products`` of the m'_k (N, K, C) and of further vectors (N, J, C), both given as rows.

    On a CPU of a few positions at a time, whose m'_k so never leave the cache.
    """
    flat = [x.flatten(0, 1) for x in (means, center, vectors)]
    size = CACHED_NUMBERS // means[0, 0].numel() if means.device.type == "cpu" else len(flat[0])
    blocks = zip(*(x.split(max(1, size)) for x in flat), strict=True)
    made = [products(mean - middle, others) for mean, middle, others in blocks]
    return [torch.cat(parts) for parts in zip(*made, strict=True)]


def _bordered(inner: Tensor, side: Tensor, corner: Tensor) -> Tensor:
    """The symmetric matrices (N, n + j, n + j) of blocks inner (N, n, n), side (N, n, j) and corner (N, j, j)."""
    return torch.cat([torch.cat([inner, side], 2), torch.cat([side.mT, corner], 2)], 1)


def vectors_of(means: Tensor, center: Tensor, vectors: Sequence[Tensor]) -> Vectors:
    """`axes_of` or `span_of` means (B, P, K, C), whichever needs fewer multiplications per mean."""
    components, channels = means.shape[2:]
    by_channel = 2 * components * channels <= (components + len(vectors)) ** 2
    return axes_of(means, center, vectors) if by_channel else span_of(means, center, vectors)


@dataclass(frozen=True)
class Tilt:
    """A Gaussian factor around c: precision l (N,), shift b (n, N)."""

    precision: Tensor
    shift: Tensor


@dataclass(frozen=True)
class View:
    """What a time r makes of a posterior: gained e_r, precision p, (N,) or numbers; shrink 1 / g_k (1 or K, N).

    Of many times at once they have a first dimension more, (n, ...).
    """

    gained: Time
    precision: Time
    shrink: Tensor

    def __getitem__(self, index: int) -> View:
        """The view at one of many times."""
        assert isinstance(self.gained, Tensor) and isinstance(self.precision, Tensor)
        return View(self.gained[index], self.precision[index], self.shrink[index])


@dataclass(frozen=True)
class ReducedPosterior:
    """q(x | x_t) times a factor; see the module. Points are rho_r and means E[x | x_r] - c, both (n, N).

    center c (B, C, *S); vectors, the m'_k, rho_t and the factors' shifts; log_weights (K, N), variance (1 or K, N),
    squares |m'_k|^2 (K, N), channels C, start rho_t (n, N); tilt, the factor, None for none.
    """

    center: Tensor
    vectors: Vectors
    log_weights: Tensor
    variance: Tensor
    squares: Tensor
    channels: int
    t: Time
    start: Tensor
    tilt: Tilt | None

    def mean_at(self, point: Tensor, r: Time) -> Tensor:
        """See `Posterior.mean_at`."""
        return self.mean_of(point, self.view(r))

    def view(self, r: Time) -> View:
        """What the posterior needs of a time, or of many at once, (n, N)."""
        gained, evidence = (1 - r) / r**2, (1 - self.t) / self.t**2
        precision: Time = (1 - r) * gained - (1 - self.t) * evidence
        if self.tilt is not None:
            precision = precision + self.tilt.precision
        growth = 1 + self.variance * (precision if isinstance(precision, float) else precision.unsqueeze(-2))
        return View(gained, precision, 1 / growth)

    def mean_of(self, point: Tensor, seen: View) -> Tensor:
        """`mean_at` the time of a view."""
        shift, shrink = torch.sub(seen.gained * point, self._pull), seen.shrink
        if len(self.variance) == 1:  # which leaves all passes but three to the numbers of a vector
            shift = shift * shrink
            logits = torch.addcmul(self.log_weights, self.squares, seen.precision * shrink, value=-0.5)
            weights = torch.softmax(logits.add_(self.vectors.inner(shift)), 0)
            return torch.addcmul(self.vectors.combine(weights) * shrink, self.variance, shift)
        exponent = (self.vectors.inner(shift) - 0.5 * seen.precision * self.squares) * shrink
        spread = self.variance * self.vectors.square(shift) * shrink + self.channels * shrink.log()
        weights = torch.softmax(self.log_weights + exponent + 0.5 * spread, 0) * shrink
        return self.vectors.combine(weights) + (weights * self.variance).sum(0) * shift

    @cached_property
    def _pull(self) -> Tensor:
        """e_t rho_t, less the factor's shift."""
        pull = (1 - self.t) / self.t**2 * self.start
        return pull if self.tilt is None else pull - self.tilt.shift

    def through(self, x: Tensor, r: Time) -> tuple[ReducedPosterior, Tensor]:
        """The same in a form that points beside the way can be written in, and the point x_r = x (B, C, *S) in it."""
        offset = x - (1 - _by_sample(r, x)) * self.center
        vectors, point = self.vectors.holding(rows(offset.unsqueeze(COMPONENT)))
        added = (0, 0, 0, len(point) - len(self.start))
        tilt = None if self.tilt is None else Tilt(self.tilt.precision, pad(self.tilt.shift, added))
        return replace(self, vectors=vectors, start=pad(self.start, added), tilt=tilt), point

    def lift(self, r: Time, point: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See `Posterior.lift`: one pass over the means for both."""
        restored = self.vectors.restore([point] if mean is None else [point, mean])
        x, *means = (from_rows(row, self.center.shape[2:]).squeeze(COMPONENT) for row in restored)
        return (1 - _by_sample(r, self.center)) * self.center + x, self.center + means[0] if means else None


def reduced_posteriors(
    mixture: GaussianMixture,
    x_t: Tensor,
    t: Time,
    factors: Sequence[GaussianFactor | None] = (None,),
    mean: Tensor | None = None,
    form: Callable[[Tensor, Tensor, Sequence[Tensor]], Vectors] = vectors_of,
) -> tuple[ReducedPosterior, ...]:
    """q(x | x_t) times each of the ``factors`` (None: as it is), in one form, so that points pass between them.

    mixture over the data at x_t (B, C, *S), t in (0, 1]. mean: the mixture's, where it is known. form: `axes_of` or
    `span_of`; by default the cheaper one.
    """
    center = mixture.mean() if mean is None else mean
    distinct = list({id(factor): factor for factor in factors if factor is not None}.values())
    moved = [factor.around(center) for factor in distinct]
    shifts = [x_t - (1 - _by_sample(t, center)) * center, *(factor.shift for factor in moved)]
    center_rows, *shift_rows = (rows(x.unsqueeze(COMPONENT)) for x in (center, *shifts))
    vectors = form(rows(mixture.means), center_rows, shift_rows)
    positions = math.prod(center.shape[2:])
    tilts: dict[int, Tilt | None] = {id(None): None} | {
        id(factor): Tilt(_innermost(around.precision, positions).squeeze(0), vectors.given(place))
        for place, (factor, around) in enumerate(zip(distinct, moved, strict=True), 1)
    }
    shared = (
        center,
        vectors,
        _innermost(mixture.log_weights.squeeze(CHANNEL), positions),
        _innermost(mixture.variance.squeeze(CHANNEL), positions),
        vectors.squares(),
        center.shape[1],
        t,
        vectors.given(0),
    )
    return tuple(ReducedPosterior(*shared, tilts[id(factor)]) for factor in factors)


def _by_sample(time: Time, like: Tensor) -> Time:
    """A time of each position, (N,), as (B, 1, *S); a time of all as it is."""
    return time.reshape(len(like), 1, *like.shape[2:]) if isinstance(time, Tensor) else time


def _innermost(x: Tensor, positions: int) -> Tensor:
    """(B, k, *S or ones) as (k, N)."""
    return x.reshape(*x.shape[:2], -1).expand(-1, -1, positions).transpose(0, 1).flatten(1)
