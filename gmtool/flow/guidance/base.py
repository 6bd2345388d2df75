"""What a guidance scheme is."""

from __future__ import annotations

from typing import Any, Protocol


class Scheme(Protocol):
    """Guidance of a scale: a model of a solver, led away from another model."""

    @property
    def scale(self) -> float:
        """The guidance scale."""

    def __call__(self, model: Any, other: Any) -> Any:
        """The guided model; ``other`` is of the kind that the scheme's row says. Each call evaluates both once."""
