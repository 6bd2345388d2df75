"""A solver is a step; `integrate` is the only loop.

A solver defines how many intervals of time a number of network evaluations gives, its state between steps (`init`),
and the step from x_t to x_s, s < t. The caller chooses the grid of times. One file per solver names its source.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from gmtool.mixture.gaussian_mixture import GaussianMixture
from gmtool.streams import Noise

Model = TypeVar("Model")
State = TypeVar("State")

Draw = Callable[[GaussianMixture, Noise], Tensor]
"""(mixture, the samples' random numbers) -> a draw from the mixture (B, C, *S)."""


@dataclass(frozen=True)
class SolverOptions:
    """Options of a command; each solver takes those that concern it.

    evaluations: of the network in all. shift: of the grid of times. order, substeps: of GM-ODE and GM-SDE. draw: how
    GM-SDE draws from a mixture; None for its own. policy, temperature, renewal: of a student.
    """

    evaluations: int
    shift: float = 1.0
    order: int = 2
    substeps: int = 1
    draw: Draw | None = None
    policy: str = "gm"
    temperature: float = 1.0
    renewal: float = 0.0


class Solver(ABC, Generic[Model, State]):
    """One step of a solver of dx/dt from t = 1 (source) to t = 0 (data), for a kind of model."""

    @classmethod
    def configured(cls, _options: SolverOptions) -> Solver[Model, State]:
        """The solver that a command asks for; this one has no options."""
        return cls()

    def intervals(self, evaluations: int) -> int:
        """Intervals of time for a number of network evaluations."""
        return evaluations

    @abstractmethod
    def init(self, x: Tensor) -> State:
        """The state before the first step, which begins at x (B, C, *S)."""

    @abstractmethod
    def step(
        self, model: Model, x: Tensor, t: float, s: float, state: State, noise: Noise | None
    ) -> tuple[Tensor, State]:
        """x_s (B, C, *S) from x = x_t, 0 <= s < t <= 1, and the state for the next step.

        noise: the samples' random numbers; a solver of an ODE does not use them.
        """


class Memoryless(Solver[Model, None]):
    """A solver without state."""

    def init(self, _x: Tensor) -> None:
        """None, whatever x (B, C, *S)."""
        return


def integrate(
    solver: Solver[Model, State],
    model: Model,
    x: Tensor,
    grid: Tensor,
    noise: Noise | None = None,
    observe: Callable[[float, Tensor], None] | None = None,
) -> Tensor:
    """x (B, C, *S) integrated along the decreasing times of ``grid`` (n + 1,); see `gmtool.flow.times` for grids.

    observe: called with every time of the grid and x there, the first one included.
    """
    times, state = grid.tolist(), solver.init(x)
    if observe is not None:
        observe(times[0], x)
    for t, s in itertools.pairwise(times):
        x, state = solver.step(model, x, t, s, state, noise)
        if observe is not None:
            observe(s, x)
    return x


def given(noise: Noise | None) -> Noise:
    """The random numbers of a solver that needs them. Raises ValueError without."""
    if noise is None:
        raise ValueError("this solver adds noise: give the samples' random numbers")
    return noise
