"""Policies: a velocity pi(x_r, r) at every later point that needs no network any more.

A student's network is called once, at (x_t, t), the start of a segment of time. What it predicts there is a policy,
which is then followed, dx/dr = pi(x_r, r), in as many sub-steps as one likes:

    gm       q(x | x_t), a mixture over the data:  pi(x_r, r) = (x_r - E[x | x_r]) / r, the mean as GM-ODE has it
    dx       N predictions x_j = x_t - t u_j of the data on an even grid of raw times, the last one at the segment's
             start, interpolated linearly:         pi(x_r, r) = (x_r - x(r)) / r
    dx-poly  the same with x(r) = sum_j x_j (tau_t - tau_r)^j, a polynomial in raw time

Raw times tau are even in what a segment and a roll divide: t = s tau / (1 + (s - 1) tau). All times are one per sample.
Source: pi-Flow (ICLR 2026), arXiv 2510.14974, sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from gmtool.flow.path import bridge_factor, data_mixture, mean_velocity, per_sample
from gmtool.flow.posterior import ReducedPosterior, reduced_posteriors
from gmtool.flow.times import EARLIEST, raw_time, shift_time
from gmtool.mixture.gaussian_mixture import COMPONENT, GaussianMixture

CACHED_POSITIONS = 512
"""Positions that are rolled together on a CPU: few enough that their mixtures stay in the cache from one sub-step to
the next."""
ROUNDING = 1e-3
"""Sub-steps by which a length in float32 may be off."""


class Point(NamedTuple):
    """A point x_r (B, C, *S) and its time r (B,)."""

    x: Tensor
    r: Tensor


@dataclass(frozen=True)
class Segment:
    """Where a policy is followed: raw times from ``start`` down to ``start`` - ``length``, (B,) each.

    shift: s of the times that they stand for. longest: no length is greater, which is known without asking the device.
    """

    start: Tensor
    length: Tensor
    shift: float = 1.0
    longest: float = 1.0

    @property
    def t(self) -> Tensor:
        """The time of its start, (B,)."""
        return shift_time(self.start, self.shift)

    @property
    def end(self) -> Tensor:
        """The raw time of its end, (B,)."""
        return (self.start - self.length).clamp(min=0)


Roll = Callable[[Tensor, Tensor], Tensor]
"""The end of Euler's steps along a policy from x, (B, C, *S), through falling times (n + 1, B).

A sample whose times stay the same stays where it is.
"""


class Policy(Protocol):
    """See the module."""

    def velocities(self, points: Sequence[Point]) -> list[Tensor]:
        """pi(x_r, r) (B, C, *S) at each point; differentiable in what the network predicted."""

    def velocity(self, x: Tensor, r: Tensor) -> Tensor:
        """`velocities` at one point."""
        return self.velocities([Point(x, r)])[0]

    def roller(self) -> Roll:
        """The policy's `Roll`, which has worked out once what its calls have in common."""

    def roll(self, x: Tensor, times: Tensor) -> Tensor:
        """A single `Roll`."""
        return self.roller()(x, times)

    def detach(self, dropped: Tensor | None = None) -> Policy:
        """The policy without gradients. dropped (B, K) bool: components to leave out; None for none."""

    def cooled(self, temperature: float) -> Policy:
        """The policy at a temperature of at most 1. Raises ValueError where it has no mixture."""


PolicyMaker = Callable[[Tensor | GaussianMixture, Tensor, Segment], Policy]
"""(what the network predicts at (x_t, t), x_t, the segment that t starts) -> the policy."""


@dataclass(frozen=True)
class MixturePolicy(Policy):
    """``gm``: the mixture over the data at x_t (B, C, *S), t (B,)."""

    mixture: GaussianMixture
    x_t: Tensor
    t: Tensor

    @classmethod
    def of(cls, predicted: Tensor | GaussianMixture, x_t: Tensor, segment: Segment) -> MixturePolicy:
        """The policy of a mixture over the velocity. Raises TypeError for a prediction that is none."""
        if not isinstance(predicted, GaussianMixture):
            raise TypeError("the network predicts no mixture, which the policy gm is made of")
        return cls(data_mixture(predicted, x_t, segment.t), x_t, segment.t)

    def velocities(self, points: Sequence[Point]) -> list[Tensor]:
        """See `Policy.velocities`."""
        points = [Point(x, r.clamp(min=EARLIEST)) for x, r in points]
        # any centre gives the same function: the gradient need not pass through it
        center = self.mixture.mean().detach()
        means = self.mixture.means_times([bridge_factor(x, r, self.x_t, self.t, center) for x, r in points])
        return [mean_velocity(x, r, mean) for (x, r), mean in zip(points, means, strict=True)]

    def roller(self) -> Roll:
        """See `Policy.roller`: the coefficients of `gmtool.flow.posterior`, whatever the number of channels."""
        count, positions = len(self.x_t), self.x_t[0, 0].numel()
        if self.x_t.device.type == "cpu":
            count = max(1, CACHED_POSITIONS // positions)
        parts = (values.split(count) for values in (*vars(self.mixture).values(), self.x_t, self.t))
        posteriors = [
            reduced_posteriors(GaussianMixture(*mixture), x_t, t.repeat_interleave(positions))[0]
            for *mixture, x_t, t in zip(*parts, strict=True)
        ]

        def roll(x: Tensor, times: Tensor) -> Tensor:
            points = [None] * len(posteriors) if x is self.x_t else x.split(count)
            grids = (moving(some).repeat_interleave(positions, 1) for some in times.split(count, 1))
            return torch.cat([_end(*given) for given in zip(posteriors, points, grids, strict=True)])

        return roll

    def detach(self, dropped: Tensor | None = None) -> MixturePolicy:
        """See `Policy.detach`; a sample that would lose all components loses none."""
        mixture = self.mixture
        log_weights = mixture.log_weights.detach()
        if dropped is not None:
            dropped = dropped & ~dropped.all(1, keepdim=True)
            mask = dropped.reshape(*dropped.shape, *[1] * (log_weights.dim() - 2))
            log_weights = torch.log_softmax(log_weights.masked_fill(mask, float("-inf")), COMPONENT)
        detached = GaussianMixture(mixture.means.detach(), log_weights, mixture.variance.detach())
        return replace(self, mixture=detached)

    def cooled(self, temperature: float) -> MixturePolicy:
        """See `Policy.cooled`: log-weights / T renormalised, variance times T."""
        log_weights = torch.log_softmax(self.mixture.log_weights / temperature, COMPONENT)
        mixture = GaussianMixture(self.mixture.means, log_weights, self.mixture.variance * temperature)
        return replace(self, mixture=mixture)


def _end(posterior: ReducedPosterior, away: Tensor | None, times: Tensor) -> Tensor:
    """The end of Euler's steps through times (n + 1, N) of each position, from x_t or from a point ``away`` from it."""
    point = posterior.start
    if away is not None:
        posterior, point = posterior.through(away, times[0])
    views = posterior.view(times[:-1].clamp(min=EARLIEST))
    for index, keep in enumerate(kept(times)):
        point = torch.lerp(posterior.mean_of(point, views[index]), point, keep)
    return posterior.lift(times[-1], point)[0]


@dataclass(frozen=True)
class DataPolicy(Policy):
    """``dx`` and ``dx-poly``: predictions x_j (B, N, C, *S) of the data in a segment; blend: their weights (B, N) at
    times r (B,).
    """

    data: Tensor
    segment: Segment
    blend: Callable[[Segment, Tensor, int], Tensor]

    def velocities(self, points: Sequence[Point]) -> list[Tensor]:
        """See `Policy.velocities`."""
        return [mean_velocity(x, r.clamp(min=EARLIEST), self._at(r)) for x, r in points]

    def roller(self) -> Roll:
        """See `Policy.roller`."""
        return self._roll

    def _roll(self, x: Tensor, times: Tensor) -> Tensor:
        grid = moving(times)
        for r, keep in zip(grid, kept(grid), strict=False):
            x = torch.lerp(self._at(r), x, per_sample(keep, x))
        return x

    def detach(self, _dropped: Tensor | None = None) -> DataPolicy:
        """See `Policy.detach`."""
        return replace(self, data=self.data.detach())

    def cooled(self, _temperature: float) -> DataPolicy:
        """See `Policy.cooled`."""
        raise ValueError("a temperature is that of a mixture, which this policy has not")

    def _at(self, r: Tensor) -> Tensor:
        """x(r), (B, C, *S)."""
        weights = self.blend(self.segment, r, self.data.shape[1])
        return (weights.reshape(*weights.shape, *[1] * (self.data.dim() - 2)) * self.data).sum(1)


def _linear(segment: Segment, r: Tensor, count: int) -> Tensor:
    """The hat functions of an even grid of ``count`` raw times, from the segment's end to its start."""
    span = (segment.start - segment.end).clamp(min=EARLIEST)
    place = ((raw_time(r, segment.shift) - segment.end) / span).clamp(0, 1) * (count - 1)
    nodes = torch.arange(count, device=r.device)
    return (1 - (place.unsqueeze(1) - nodes).abs()).clamp(min=0)


def _powers(segment: Segment, r: Tensor, count: int) -> Tensor:
    """1, d, ... d^(count - 1) of the raw time d that has passed since the segment's start."""
    passed = segment.start - raw_time(r, segment.shift)
    return passed.unsqueeze(1) ** torch.arange(count, device=r.device)


def _data_policy(blend: Callable[[Segment, Tensor, int], Tensor]) -> PolicyMaker:
    def make(predicted: Tensor | GaussianMixture, x_t: Tensor, segment: Segment) -> DataPolicy:
        """The policy of velocities (B, N, C, *S), or of one (B, C, *S)."""
        u = cast(Tensor, predicted)
        u = u.unsqueeze(1) if u.dim() == x_t.dim() else u
        start = x_t.unsqueeze(1)
        return DataPolicy(start - per_sample(segment.t, u) * u, segment, blend)

    return make


POLICIES: Mapping[str, PolicyMaker] = {
    "gm": MixturePolicy.of,
    "dx": _data_policy(_linear),
    "dx-poly": _data_policy(_powers),
}
"""Policies by their names in flags and manifests."""


def roll_grid(start: Tensor, end: Tensor, shift: float, substeps: int, longest: float = 1.0) -> Tensor:
    """Times (n + 1, B) of a roll between raw times start >= end (B,): ``substeps`` per unit of raw time, at least one.

    longest: no start - end is greater; it fixes n, since asking for the greatest would wait for the device. Samples of
    fewer sub-steps than n repeat their last time.
    """
    parts = ((start - end) * substeps).round().clamp(min=1)
    count = max(1, math.floor(longest * substeps + 0.5 + ROUNDING))
    share = torch.arange(count + 1, device=start.device).unsqueeze(1) / parts
    share[-1] = 1
    return shift_time((start - share.clamp(max=1) * (start - end)).clamp(min=0), shift)


def moving(times: Tensor) -> Tensor:
    """The times (n + 1, B) without those at the end that no sample moves between."""
    if times.device.type != "cpu":
        return times  # finding out would wait for the device
    return times[: max(1, int((times[:-1] > times[-1]).any(1).sum())) + 1]


def kept(times: Tensor) -> Tensor:
    """r' / r of consecutive times (n + 1, B): the share of a point in the end of an Euler step; 1 where r = 0."""
    before, after = times[:-1], times[1:]
    return torch.where(before > 0, after / before, 1.0)
