"""Every guidance scheme by its name: which model it leads away from, for which kinds of model, and the range of its
scale.

A scheme wraps the model of a solver and another one as a model. A new one is a file with a
`gmtool.flow.guidance.base.Scheme`, and a row here. Nothing heavy is imported: the flags are made from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from gmtool.flow.names import On

if TYPE_CHECKING:
    from gmtool.flow.guidance.base import Scheme

ALWAYS = (0.0, 1.0)
"""The interval of all times."""


@dataclass(frozen=True)
class ScaleRange:
    """minimum <= scale < below, and the scale where none is given."""

    minimum: float
    below: float | None
    default: float

    def __contains__(self, scale: float) -> bool:
        return self.minimum <= scale < (float("inf") if self.below is None else self.below)

    def __str__(self) -> str:
        return f"at least {self.minimum:g}" if self.below is None else f"in [{self.minimum:g}, {self.below:g})"


@dataclass(frozen=True)
class Form:
    """A scheme on one kind of model. other: the kind of the model that it leads away from. orthogonal: whether it
    projects out the part of the direction along the mean.
    """

    where: str
    other: On
    scale: ScaleRange
    orthogonal: bool = False

    def make(self, scale: float, orthogonal: float) -> Scheme:
        """The scheme."""
        module, name = self.where.split(":")
        kind: Any = getattr(import_module(module), name)
        return kind(scale, orthogonal) if self.orthogonal else kind(scale)


@dataclass(frozen=True)
class GuidanceEntry:
    """A row. away_from: the same network without its condition, or a weaker network. forms: by what is integrated."""

    away_from: Literal["hidden", "weaker"]
    help: str
    forms: Mapping[On, Form] = field(default_factory=dict)


_EXTRAPOLATION = ScaleRange(1.0, None, 1.5)  # the default: MM-FM's
_SHIFT = ScaleRange(0.0, 1.0, 0.04)  # the default: GMFlow's best for FID
_CFG = Form("gmtool.flow.guidance.cfg:ClassifierFree", "velocity", _EXTRAPOLATION)
_PROB = Form("gmtool.flow.guidance.probabilistic:Probabilistic", "velocity", _SHIFT, orthogonal=True)
_WEIGHTS = Form("gmtool.flow.guidance.weights:ComponentWeights", "mixture", _EXTRAPOLATION)

GUIDANCES: dict[str, GuidanceEntry] = {
    "cfg": GuidanceEntry("hidden", "classifier-free guidance, solvers of a velocity", {"velocity": _CFG}),
    "prob": GuidanceEntry("hidden", "probabilistic guidance, solvers of a mixture", {"mixture": _PROB}),
    "prob-weights": GuidanceEntry("hidden", "re-weights the components, solvers of a mixture", {"mixture": _WEIGHTS}),
    # Karras et al., arXiv 2406.02507; MM-FM, section 4. Both models are given the same condition, so that only the
    # quality is extrapolated, not the class, and the guided run needs neither conditions nor dropout
    "auto": GuidanceEntry(
        "weaker", "autoguidance, away from the weaker run --guide, any solver", {"velocity": _CFG, "mixture": _PROB}
    ),
}
