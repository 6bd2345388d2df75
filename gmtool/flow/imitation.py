"""Students of few network evaluations: a policy learns to do what a teacher would do where the policy goes.

Time is cut into one segment per evaluation. In a segment the student's network is called once, at its start (x_T, T).
Its policy (`gmtool.flow.policy`) is followed, without gradients, to a few points x_a, at each of which the teacher is
asked for its velocity v; the loss is

    |pi(x_a, a) - v(x_a, a)|^2,

where the policy's velocity may also be its mean one over a window that begins there. Part of the way between two points
may lead along the teacher's velocity; this share falls from 1 to 0 early in training.
Source: pi-Flow (ICLR 2026), arXiv 2510.14974, section 3.3, algorithms 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from gmtool.flow.model import Predict, VelocityModel
from gmtool.flow.objective import Draws, Pairs, flow_matching_loss
from gmtool.flow.path import interpolate, per_sample
from gmtool.flow.policy import POLICIES, Point, Policy, Segment, roll_grid
from gmtool.flow.times import EARLIEST, raw_time, shift_time

SUBSTEPS = 128
"""Sub-steps of a roll a unit of raw time."""


@dataclass(frozen=True)
class Segments:
    """Raw time cut into ``count`` segments, one per network evaluation.

    last: length of the one next to the data in units of the others'. shift: s of the times that raw ones stand for.
    """

    count: int
    last: float = 1.0
    shift: float = 1.0

    @property
    def length(self) -> float:
        """Length in raw time of all segments but the last."""
        return 1 / (self.count - 1 + self.last)

    def around(self, raw: Tensor) -> Segment:
        """The segments that raw times (B,) in (0, 1] lie in."""
        short = 1 - self.last
        index = (raw.clamp(min=EARLIEST) / self.length + short).ceil().clamp(1, self.count)
        start = ((index - short) * self.length).clamp(EARLIEST, 1)
        length = torch.where(index == 1, self.last * self.length, self.length)
        return Segment(start, length, self.shift, self.length)

    def number(self, index: int, like: Tensor) -> Segment:
        """The segment ``index``, from 0 at the noise, for each sample of ``like`` (B, ...)."""
        length = self.length * (self.last if index == self.count - 1 else 1)
        start, size = 1 - index * self.length, like.shape[:1]
        return Segment(like.new_full(size, start), like.new_full(size, length), self.shift, length)

    def grid(self) -> Tensor:
        """The times (count + 1,) between the segments in float64, from 1 to 0."""
        raw = 1 - torch.arange(self.count + 1, dtype=torch.float64) * self.length
        raw[-1] = 0
        return shift_time(raw, self.shift)


class Visit(NamedTuple):
    """A point at which the teacher was asked: x_a (B, C, *S), its raw time a and that of its window's end (B,), v."""

    x: Tensor
    raw: Tensor
    end: Tensor
    taught: Tensor


class Ways(NamedTuple):
    """Raw lengths (B, M) of what leads to each state: by the student, and after it by the teacher."""

    student: Tensor
    teacher: Tensor


@dataclass(frozen=True)
class ImitationDraws(Draws):
    """The random numbers of `Imitation`, for G segments of each of B samples, with M states in each.

    student (B, G, M), teacher (B, G, M - 1), dropped (B, G, K): in [0, 1), for the places of the states and the
    components that are left out. share: the teacher's part of the way, by the step of training.
    """

    student: Tensor
    teacher: Tensor
    dropped: Tensor
    share: float


@dataclass(frozen=True)
class Imitation:
    """The loss of a student (``imitation``): mean square over C, positions and states.

    policy: its row in `gmtool.flow.policy.POLICIES`; components: K of a mixture. states: points of a segment at which
    policy and teacher are compared. dropout: probability of dropping each component of the policy that leads there.
    window: sub-steps of the mean velocity. warmup: steps over which the teacher's share of the trajectory falls from 1
    to 0, 0 for none. data_free: start at the source and go through all segments, each loss weighted by its length.
    substeps: of a roll, per unit of raw time. teacher: its velocity for the samples of the batch; see `taught`.
    """

    segments: Segments
    policy: str = "gm"
    components: int = 0
    states: int = 2
    dropout: float = 0.05
    window: int = 0
    warmup: int = 0
    data_free: bool = False
    substeps: int = SUBSTEPS
    teacher: VelocityModel | None = None

    transitions = False

    @property
    def mixture(self) -> bool:
        """See `gmtool.flow.objective.Objective`."""
        return self.policy == "gm"

    def taught(self, teacher: VelocityModel) -> Imitation:
        """The loss of samples whose teacher has this velocity, in the coordinates of the flow."""
        return replace(self, teacher=teacher)

    def draw(self, drawn: Draws, generator: torch.Generator, step: int) -> ImitationDraws:
        """See `gmtool.flow.objective.Objective.draw`."""
        segments = self.segments.count if self.data_free else 1

        def uniform(numbers: int) -> Tensor:
            return torch.rand(len(drawn.t), segments, numbers, generator=generator, device=generator.device)

        share = max(0.0, 1 - step / self.warmup) if self.warmup else 0.0
        states = uniform(self.states), uniform(self.states - 1)
        return ImitationDraws(drawn.t, drawn.noise, *states, uniform(self.components), share)

    def loss(self, predict: Predict, pairs: Pairs, draws: ImitationDraws) -> Tensor:
        """The loss of each sample, (B,) float32. predict: the student. Raises ValueError without a teacher."""
        if not self.data_free:
            segment = self.segments.around(raw_time(draws.t, self.segments.shift))
            x = interpolate(pairs.x, pairs.z, segment.t)
            policy = POLICIES[self.policy](predict(x, segment.t), x, segment)
            return self.segment_loss(policy, x, segment, draws, 0)[0]
        x, total = pairs.z, pairs.z.new_zeros(len(pairs.z))
        for index in range(self.segments.count):
            segment = self.segments.number(index, x)
            policy = POLICIES[self.policy](predict(x, segment.t), x, segment)
            loss, x = self.segment_loss(policy, x, segment, draws, index)
            total = total + segment.length * loss
        return total

    def ways(self, segment: Segment, draws: ImitationDraws, index: int = 0) -> Ways:
        """The places of the ``states`` in a segment: sorted uniform numbers divide the parts of student and teacher."""
        free, share = (segment.length - self.window_length(segment)).unsqueeze(1), draws.share
        student = draws.student[:, index].sort(1).values
        teacher = draws.teacher[:, index].sort(1).values
        none, whole = torch.zeros_like(student[:, :1]), torch.ones_like(student[:, :1])
        return Ways(
            torch.diff(student, prepend=none) * (1 - share) * free,
            torch.diff(teacher, prepend=none, append=whole) * share * free,
        )

    def window_length(self, segment: Segment) -> Tensor:
        """The raw length (B,) of the window: so many of the sub-steps that the segment is cut into."""
        parts = (segment.length * self.substeps).round().clamp(min=1)
        return torch.minimum(self.window / parts, torch.ones_like(parts)) * segment.length

    def segment_loss(
        self, policy: Policy, x: Tensor, segment: Segment, draws: ImitationDraws, index: int
    ) -> tuple[Tensor, Tensor]:
        """The loss (B,) of a policy in its segment, which begins at x (B, C, *S), and the end of its way through it.

        index: of the segment's random numbers. The end is only worked out for what is `data_free`, else it is the last
        state.
        """
        with torch.no_grad():
            visits, x = self._follow(policy, x, segment, draws, index)
        velocities = self._velocities(policy, visits, segment, draws.share)
        losses = [flow_matching_loss(own, visit.taught) for own, visit in zip(velocities, visits, strict=True)]
        return torch.stack(losses).mean(0), x

    def _follow(
        self, policy: Policy, x: Tensor, segment: Segment, draws: ImitationDraws, index: int
    ) -> tuple[list[Visit], Tensor]:
        """The points at which the teacher is asked, and the last one on the way; see `segment_loss`."""
        if self.teacher is None:
            raise ValueError("a student needs a teacher: see Imitation.taught")
        dropped = draws.dropped[:, index] < self.dropout if self.components else None
        roll = policy.detach(dropped).roller()
        ways, window, shift = self.ways(segment, draws, index), self.window_length(segment), segment.shift
        led = (1 - draws.share) * segment.longest
        raw, visits = segment.start, []
        for by_student, by_teacher in zip(ways.student.unbind(1), ways.teacher.unbind(1), strict=True):
            state = (raw - by_student).clamp(min=0)
            after = (state - by_teacher).clamp(min=0)
            x = roll(x, roll_grid(raw, state, shift, self.substeps, led))
            u = self.teacher(x, shift_time(state, shift))
            visits.append(Visit(x, state, (after - window).clamp(min=0), u))
            if self.warmup:
                x = x + u * per_sample(shift_time(after, shift) - shift_time(state, shift), x)
            raw = after
        if self.data_free:
            x = roll(x, roll_grid(raw, segment.end, shift, self.substeps, segment.longest))
        return visits, x

    def _velocities(self, policy: Policy, visits: list[Visit], segment: Segment, share: float) -> list[Tensor]:
        """The policy's mean velocities over the windows; its own velocity at points whose window is shorter than two
        sub-steps. share: the teacher's.
        """
        shift = segment.shift
        own = policy.velocities([Point(visit.x, shift_time(visit.raw, shift)) for visit in visits])
        if not (self.window or self.warmup):
            return own
        # a mean velocity is over at most the teacher's part of the way and the window, whose sub-steps are 1 / substeps
        # long, or half as long again in a segment of one and a half
        longest = min(segment.longest, share * segment.longest + 1.5 * self.window / self.substeps)
        roll, velocities = policy.roller(), []
        for velocity, (x, start, end, _) in zip(own, visits, strict=True):
            passed = shift_time(start, shift) - shift_time(end, shift)
            rolled = roll(x, roll_grid(start, end, shift, self.substeps, longest))
            mean = (x - rolled) / per_sample(passed.clamp(min=EARLIEST), x)
            short = ((start - end) * self.substeps).round() < 2
            velocities.append(torch.where(per_sample(short, x), velocity, mean))
        return velocities
