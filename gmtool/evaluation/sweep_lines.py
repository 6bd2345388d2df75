"""A sweep as lines: points that differ in the seed alone are a mean and a spread, and lie in order along an axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean, stdev
from typing import Any

from gmtool.evaluation.metrics import metrics_by_name
from gmtool.evaluation.sweep_table import RUN, Sweep, SweepPoint, setting_of, split_name

MANY = 8
"""Lines beyond which a plot keeps one a run and solver, at the best of the other settings."""

EVALUATIONS, SCALE, STEPS = "evaluations", "guidance_scale", "steps"
"""Possible x axes; evaluations follow from steps."""

Group = tuple[SweepPoint, ...]
"""Points that differ in the seed alone."""


@dataclass(frozen=True)
class Value:
    """A mean over seeds and its standard deviation, which is None for one seed."""

    mean: float
    spread: float | None

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + ("" if self.spread is None else f" ± {self.spread:.2g}")


@dataclass(frozen=True)
class Line:
    """Groups of points along an axis. label: what they have in common and other lines do not."""

    label: str
    groups: tuple[Group, ...]


def value_of(group: Group, metric: str, real: bool = False) -> Value | None:
    """A metric over the seeds of a group, or the same of real images; None unless every seed has it."""
    figures = [point.figure(metric) for point in group]
    measurements = [None if figure is None else figure.real if real else figure.generated for figure in figures]
    values = [measurement.value for measurement in measurements if measurement is not None]
    if len(values) < len(group):
        return None
    return Value(fmean(values), stdev(values) if len(values) > 1 else None)


def floors_of(sweep: Sweep, metric: str) -> dict[int, float]:
    """The metric of real images in the samples' place, by the number of images: the mean over all points with it."""
    values: dict[int, list[float]] = {}
    for group in sweep.groups:
        floor = value_of(group, metric, real=True)
        if floor is not None:
            values.setdefault(group[0].images, []).append(floor.mean)
    return {images: fmean(means) for images, means in sorted(values.items())}


def floor_words(images: int, sizes: int) -> str:
    """The legend of the value of real images, for ``images`` of them: with that number if there are several sizes."""
    return "real images in their place" + (f" ({images:,})" if sizes > 1 else "")


def best_of(groups: Sequence[Group], metric: str) -> Group | None:
    """The group with the best mean; for a metric without a better direction, the one nearest to real images."""
    known = [group for group in groups if value_of(group, metric) is not None]
    return min(known, key=lambda group: _loss(group, metric), default=None)


def _loss(group: Group, metric: str) -> float:
    value, real = value_of(group, metric), value_of(group, metric, real=True)
    assert value is not None
    better = metrics_by_name()[split_name(metric)[1]].better
    if better:
        return value.mean if better == "lower" else -value.mean
    return math.inf if real is None else abs(value.mean - real.mean)


def position_of(group: Group, along: str) -> float | None:
    """Where a group lies on an axis; None where the axis has no effect on it."""
    value = group[0].evaluations if along == EVALUATIONS else setting_of(group[0], along)
    return None if value == "" else float(value)


def lines(sweep: Sweep, along: str, metric: str | None = None) -> tuple[Line, ...]:
    """The lines along `EVALUATIONS` or `SCALE`, the points of each in rising order.

    A line has one run, solver, and value of every other axis. metric: where there would be more than `MANY` lines, a
    line has one run and solver alone, and at each place the point that is best by this metric; None: all lines.
    """
    own = STEPS if along == EVALUATIONS else along
    axes = [axis.setting for axis in sweep.axes if axis.setting != own]
    all_lines = _lines(sweep, along, axes, lambda groups: groups)
    if metric is None or len(all_lines) <= MANY:
        return all_lines

    def best(groups: Sequence[Group]) -> Sequence[Group]:
        places = dict.fromkeys(position_of(group, along) for group in groups)
        chosen = [
            best_of([group for group in groups if position_of(group, along) == place], metric) for place in places
        ]
        return [group for group in chosen if group is not None]

    return _lines(sweep, along, [axis for axis in axes if axis in (RUN, "solver")], best)


def _lines(
    sweep: Sweep, along: str, axes: Sequence[str], chosen: Callable[[Sequence[Group]], Sequence[Group]]
) -> tuple[Line, ...]:
    by_line: dict[tuple[Any, ...], list[Group]] = {}
    for group in sweep.groups:
        by_line.setdefault(tuple(_shared(group[0], axis) for axis in axes), []).append(group)
    names = run_names(sweep)
    return tuple(
        Line(
            _label(groups[0][0], axes, names),
            tuple(sorted(chosen(groups), key=lambda group: position_of(group, along) or 0.0)),
        )
        for groups in by_line.values()
    )


def _shared(point: SweepPoint, axis: str) -> Any:
    return point.run if axis == RUN else str(setting_of(point, axis))


def run_names(sweep: Sweep) -> dict[str, str]:
    """A short name for each run: the last part of its path, or all of it where two runs would be called the same."""
    runs = list(dict.fromkeys(point.run for point in sweep.points))
    last = [PurePath(run).name for run in runs]
    return {run: name if name and last.count(name) == 1 else run for run, name in zip(runs, last, strict=True)}


def _label(point: SweepPoint, axes: Sequence[str], names: dict[str, str]) -> str:
    parts = [names[point.run]] if RUN in axes else []
    parts.append(str(point.plan["solver"]))
    parts += [setting_words(point, axis) for axis in axes if axis not in (RUN, "solver")]
    return ", ".join(part for part in parts if part)


def setting_words(point: SweepPoint, axis: str) -> str:
    """A setting of a point in words, "" where it has no effect: 'prob', 'guidance scale 0.1', 'ema 0.999'."""
    value = setting_of(point, axis)
    if value == "":
        return ""
    if axis == "guidance":
        return "unguided" if value == "none" else str(value)
    return f"{axis.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{axis.replace('_', ' ')} {value}"
