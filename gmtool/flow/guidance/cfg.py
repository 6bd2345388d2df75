"""Classifier-free guidance: u_o + w (u - u_o), w >= 1 (Ho and Salimans, arXiv 2207.12598).

u_o is the velocity without the condition; or that of a weaker model (autoguidance, Karras et al., arXiv 2406.02507).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gmtool.flow.model import VelocityModel


@dataclass(frozen=True)
class ClassifierFree:
    """The velocity extrapolated from another one by ``scale`` >= 1."""

    scale: float

    def __call__(self, model: VelocityModel, other: VelocityModel) -> VelocityModel:
        """See `gmtool.flow.guidance.base.Scheme`."""

        def guided(x_t: Tensor, t: Tensor) -> Tensor:
            without = other(x_t, t)
            return without + self.scale * (model(x_t, t) - without)

        return guided
