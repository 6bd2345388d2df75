"""What a run learned, as its record says it: the names of the method's parts and of the condition, all settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from gmtool.errors import UserError
from gmtool.flow.coupling import Independent
from gmtool.flow.imitation import Imitation, Segments
from gmtool.flow.method import Method, method_of, student
from gmtool.flow.names import Condition, CouplingName, Objective, PolicyName, SourceName, TimeDistribution
from gmtool.flow.spectral import Spectrum
from gmtool.flow.times import TrainingTimes
from gmtool.nn.architecture import Architecture
from gmtool.nn.conditioning import Conditioning, conditioning_of


@dataclass(frozen=True)
class StudentRecord:
    """How a student imitates its teacher; see `gmtool.flow.imitation.Imitation`, and Segments there.

    components: K of its mixture, 0 for none. whitened: whether its flow runs in each mode's whitened coordinates.
    """

    evaluations: int
    policy: PolicyName
    last_segment: float
    components: int
    whitened: bool
    states: int
    component_dropout: float
    window: int
    teacher_steps: int
    data_free: bool

    def segments(self, shift: float) -> Segments:
        """The student's segments of time. shift: of the time grid; see `gmtool.flow.imitation.Segments`."""
        return Segments(self.evaluations, self.last_segment, shift)

    def method(self, teacher: Method, shift: float) -> Method:
        """The student's method, given its teacher's: another objective, and other coordinates if it is whitened."""
        objective = Imitation(
            self.segments(shift),
            self.policy,
            self.components,
            self.states,
            self.component_dropout,
            self.window,
            self.teacher_steps,
            self.data_free,
        )
        if self.data_free and teacher.coupling.whole_batch:  # there is nothing to assign
            teacher = replace(teacher, coupling=Independent())
        return student(teacher, objective, self.whitened)


@dataclass(frozen=True)
class MethodRecord:
    """See `gmtool.training.settings.MethodSettings` for each of the fields.

    transition_ratio: None for fm. spectral_weight: 1 where it has no effect, and in the records of earlier versions.
    student: None but for a student, whose other fields are those of its teacher.
    """

    objective: Objective
    source: SourceName
    coupling: CouplingName
    condition: Condition
    mode_mean: bool
    transition_ratio: float | None
    time_distribution: TimeDistribution
    time_shift: float
    dropout: float
    spectral_weight: float = 1.0
    student: StudentRecord | None = None

    @cached_property
    def method(self) -> Method:
        """The method, without a spectrum."""
        return self.with_spectrum(None)

    def with_spectrum(self, spectrum: Spectrum | None) -> Method:
        """The method, whose objective also trains a spectrum if there is one."""
        times = TrainingTimes(self.time_distribution, self.time_shift)
        method = method_of(self.objective, self.source, self.coupling, self.transition_ratio, spectrum, times)
        return method if self.student is None else self.student.method(method, self.time_shift)

    def conditioning(self, architecture: Architecture) -> Conditioning:
        """The conditions of the network, and which of them condition dropout may remove."""
        return conditioning_of(architecture, self.hides)

    @property
    def hides(self) -> Condition:
        """The condition that dropout removes in training; a mode that defines the coordinates is never removed."""
        return "none" if self.condition == "mode" and self.method.coordinates.by_mode else self.condition

    @property
    def starts_gaussian(self) -> bool:
        """Whether the source is N(0, I) in the coordinates of the flow, as solvers that add noise assume."""
        return self.method.source.gaussian

    @property
    def sees_modes(self) -> bool:
        """Whether the network is conditioned on a sample's mode."""
        return self.condition == "mode" or self.method.coordinates.by_mode

    @property
    def uses_mode_statistics(self) -> bool:
        """Whether the modes' means and deviations are used: as source, as coordinates, or as input of the network."""
        return self.method.uses_modes or self.mode_mean

    @property
    def uses_modes(self) -> bool:
        """Whether the fitted mixture is used at all."""
        return self.method.uses_modes or self.sees_modes

    @property
    def by_class(self) -> bool:
        """Whether modes are drawn from p(mode | class); other couplings make the source independent of it."""
        return self.condition == "class" and self.method.coupling.own_mode


def read_method(settings: Mapping[str, Any], whose: str) -> MethodRecord:
    """The record in a run's settings. Raises UserError, naming ``whose``, where they are not those of a run."""
    values = {**settings, "objective": "fm" if settings.get("objective") == "mm-fm" else settings.get("objective")}
    try:
        later = ("spectral_weight", "student")
        given = {field.name: values[field.name] for field in fields(MethodRecord) if field.name not in later}
        weight, student = (values.get(name) for name in later)
        record = MethodRecord(
            **given,
            spectral_weight=1.0 if weight is None else weight,
            student=None if student is None else StudentRecord(**student),
        )
        record.method  # noqa: B018  # that its parts go together
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{whose} does not say how the run was trained ({error}): train again") from error
    return record
