"""The learning rate of each step: a linear warm-up, then linear or cosine pieces between knots.

With the rate r at the end of w warm-up steps and the knots (n_i, r_i), where n_0 = w and r_0 = r, step n from 0 has

    min(1, (n + 1) / w) (r_(i+1) + (r_i - r_(i+1)) c(p)),    p = (n - n_i) / (n_(i+1) - n_i),

between knots i and i + 1, with c(p) = 1 - p (linear) or (1 + cos(pi p)) / 2 (cosine); after the last knot its rate
stays.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from gmtool.errors import UserError

Curve = Literal["linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """See the module.

    rate: at the end of the warm-up. warmup: number of steps. knots: pairs (step, rate), the steps not decreasing.
    """

    rate: float
    warmup: int = 0
    knots: tuple[tuple[int, float], ...] = ()
    curve: Curve = "linear"

    def at(self, step: int) -> float:
        """The learning rate of step ``step``, from 0."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return rise * self._settled(step)

    def _settled(self, step: int) -> float:
        """The rate of a step without the warm-up."""
        points = ((self.warmup, self.rate), *self.knots)
        if step >= points[-1][0]:
            return points[-1][1]
        for (first, before), (last, after) in pairwise(points):
            if step < last:
                # in the warm-up, which may end at or after a knot, step lies before first
                done = (step - first) / (last - first) if step > first else 0.0
                left = 1 - done if self.curve == "linear" else 0.5 * (1 + math.cos(math.pi * done))
                return after + (before - after) * left
        return self.rate


FLAG, FORM = "--lr-knots", "STEP:RATE,..., such as 50%:2e-4,100%:0"


def parse_knots(
    text: str | None, flag: str = FLAG, form: str = FORM, shares: bool = True
) -> tuple[tuple[str, float], ...]:
    """The pairs (STEP, value) of a text ``STEP:VALUE,...``, a STEP as it was typed; none for None.

    shares: whether a STEP may be a percentage. Raises UserError, naming ``flag`` and its ``form``, for another text.
    """
    pairs: list[tuple[str, float]] = []
    for part in text.split(",") if text is not None else ():
        match = re.fullmatch(r"\s*(\d{1,18}|\d{1,18}(?:\.\d+)?%)\s*:\s*([0-9.eE+-]+)\s*", part)
        try:
            place, rate = (match[1], float(match[2])) if match is not None else ("", math.nan)
        except ValueError:
            place, rate = "", math.nan
        if not 0 <= rate < math.inf or (place.endswith("%") and not shares):
            raise UserError(f"{flag} is {form}, not {text}")
        pairs.append((place, rate))
    return tuple(pairs)


def place_knots(
    text: str | None, steps: int | None, flag: str = FLAG, form: str = FORM
) -> tuple[tuple[int, float], ...]:
    """The pairs (step, value) of a text in a run of ``steps`` steps; None for steps allows no percentages of them.

    Raises UserError as `parse_knots` does, and for knots that are not in the order of their steps.
    """
    knots = tuple(
        (int(place) if steps is None or not place.endswith("%") else round(float(place[:-1]) / 100 * steps), value)
        for place, value in parse_knots(text, flag, form, shares=steps is not None)
    )
    if any(first > last for (first, _), (last, _) in pairwise(knots)):
        raise UserError(f"{flag} go from earlier steps to later ones: {text}")
    return knots
