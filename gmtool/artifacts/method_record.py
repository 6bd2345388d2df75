"""What a run learned, as its record says it: the names of the method's parts and of the condition, all settled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from gmtool.errors import UserError
from gmtool.flow.method import Method, method_of
from gmtool.flow.names import Condition, CouplingName, Objective, SourceName, TimeDistribution
from gmtool.flow.source import GaussianSource
from gmtool.flow.spectral import Spectrum
from gmtool.flow.times import TrainingTimes
from gmtool.nn.architecture import Architecture
from gmtool.nn.conditioning import Conditioning, conditioning_of


@dataclass(frozen=True)
class MethodRecord:
    """See `gmtool.training.settings.MethodSettings` for each of the fields.

    transition_ratio: None for fm. spectral_weight: 1 where it has no effect, and in the records of earlier versions.
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

    @cached_property
    def method(self) -> Method:
        """The method, without a spectrum."""
        return self.with_spectrum(None)

    def with_spectrum(self, spectrum: Spectrum | None) -> Method:
        """The method, whose objective also trains a spectrum if there is one."""
        times = TrainingTimes(self.time_distribution, self.time_shift)
        return method_of(self.objective, self.source, self.coupling, self.transition_ratio, spectrum, times)

    def conditioning(self, architecture: Architecture) -> Conditioning:
        """What the network is told, and what of it can be hidden."""
        return conditioning_of(architecture, self.hides)

    @property
    def hides(self) -> Condition:
        """The condition that training hides now and then; modes that are the coordinates cannot be hidden."""
        return "none" if self.condition == "mode" and self.method.coordinates.by_mode else self.condition

    @property
    def starts_gaussian(self) -> bool:
        """Whether the source is N(0, I) in the coordinates of the flow, as solvers that add noise assume."""
        return isinstance(self.method.source, GaussianSource)

    @property
    def sees_modes(self) -> bool:
        """Whether the network is told a sample's mode."""
        return self.condition == "mode" or self.method.coordinates.by_mode

    @property
    def uses_mode_statistics(self) -> bool:
        """Whether means and deviations of the modes enter: as source or coordinates, or shown to the network."""
        return self.method.uses_modes or self.mode_mean

    @property
    def uses_modes(self) -> bool:
        """Whether the fitted mixture enters at all."""
        return self.method.uses_modes or self.sees_modes

    @property
    def by_class(self) -> bool:
        """Whether modes are drawn given the class: under other couplings noise knows nothing of the class."""
        return self.condition == "class" and self.method.coupling.own_mode


def read_method(settings: Mapping[str, Any], whose: str) -> MethodRecord:
    """The record in a run's settings. Raises UserError, naming ``whose``, where they are not those of a run."""
    values = {**settings, "objective": "fm" if settings.get("objective") == "mm-fm" else settings.get("objective")}
    try:
        given = {each.name: values[each.name] for each in fields(MethodRecord) if each.name != "spectral_weight"}
        weight = values.get("spectral_weight")
        record = MethodRecord(**given, spectral_weight=1.0 if weight is None else weight)
        record.method  # noqa: B018  # that its parts go together
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{whose} does not say how the run was trained ({error}): train again") from error
    return record
