"""Guidance in an interval of time alone (Kynkäänniemi et al., arXiv 2404.07724)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from gmtool.flow.guidance import ALWAYS
from gmtool.flow.model import Prediction

Predicted = TypeVar("Predicted", Tensor, Prediction)

ROUNDING = 1e-6
"""How far a grid time may lie outside the interval: 1 - 0.7 is not 0.3 in binary."""


def inside(interval: tuple[float, float], t: Tensor) -> Tensor:
    """Whether times t (B,) lie in an interval, ends included: (B,) bool."""
    low, high = interval
    return (low - ROUNDING <= t) & (t <= high + ROUNDING)


def within(
    interval: tuple[float, float],
    guided: Callable[[Tensor, Tensor], Predicted],
    conditional: Callable[[Tensor, Tensor], Predicted],
) -> Callable[[Tensor, Tensor], Predicted]:
    """The ``guided`` model at times low <= t <= high, else the ``conditional`` one, which costs one evaluation.

    In the interval of all times it is the guided one itself: to ask for the time would wait for the GPU.

    For velocity and mixture models: x_t (B, C, *S), t (B,). A solver uses one time for the whole batch, so the first
    sample's time decides.
    """
    if interval == ALWAYS:
        return guided

    def model(x_t: Tensor, t: Tensor) -> Predicted:
        return guided(x_t, t) if bool(inside(interval, t[0])) else conditional(x_t, t)

    return model
