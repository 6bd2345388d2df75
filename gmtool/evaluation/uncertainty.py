"""How sure a figure is: 95 % intervals from random halves of the samples, means and spreads over seeds.

With theta_1, ..., theta_R a metric of R random halves of the N samples, drawn without replacement, each against the
whole reference, their standard deviation estimates the standard error of the metric of all N: half as many samples have
twice the variance, and halves of the same N share half of it (the delete-d jackknife, d = N / 2; Shao & Wu 1989). It
holds for all metrics here. The bootstrap does not: it draws with replacement, and copies shrink the balls around k-th
nearest neighbours, and bias Fréchet and kernel distances.

The interval is theta +- t_{R-1} sd, cut to the metric's range: for other samples of the same generator against the same
reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gmtool.evaluation.metrics import metrics_by_name
from gmtool.evaluation.report import Figure, Measurement
from gmtool.progress import Progress
from gmtool.streams import generator

LEVEL = 0.95
"""Probability that an interval holds the value."""


def with_intervals(
    figures: Sequence[Figure],
    measure: Callable[[Tensor], Mapping[str, Measurement]],
    count: int,
    halves: int,
    seed: int,
    progress: Progress,
) -> tuple[Figure, ...]:
    """The figures, with the interval of each.

    measure: the metrics by name, of the samples of some numbers, int64 (n,). count: N, 4 at least; with fewer there is
    no interval. halves: R, 2 at least.
    """
    if count < 4:
        return tuple(figures)
    values: dict[str, list[float]] = {}
    progress.begin("intervals", halves, "halves")
    try:
        for number in range(halves):
            rows = torch.randperm(count, generator=generator(seed, "half", number))[: count // 2]
            for name, measurement in measure(rows).items():
                values.setdefault(name, []).append(measurement.value)
            progress.advance()
    finally:
        progress.end()
    return tuple(_with_interval(figure, np.array(values.get(figure.metric, []))) for figure in figures)


def _with_interval(figure: Figure, values: np.ndarray) -> Figure:
    from scipy.stats import t

    values = values[np.isfinite(values)]
    if len(values) < 2:
        return figure
    wide = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1))
    value, metric = figure.generated.value, metrics_by_name().get(figure.metric)
    low, high = value - wide, value + wide
    if metric is not None:
        low, high = max(low, min(metric.least, value)), min(high, max(metric.most, value))
    return replace(figure, generated=replace(figure.generated, low=low, high=high))


def over_seeds(repeats: Sequence[Sequence[Figure]]) -> tuple[Figure, ...]:
    """The means of figures over repeats that differ in the seed alone; spread is their standard deviation.

    A value that does not depend on the seed stays as it is, and so do the figures of a single repeat.
    """
    by_metric: dict[str, list[Figure]] = {}
    for figures in repeats:
        for figure in figures:
            by_metric.setdefault(figure.metric, []).append(figure)
    return tuple(
        replace(
            group[0],
            generated=_mean([figure.generated for figure in group]),
            real=None if group[0].real is None else _mean([figure.real for figure in group if figure.real is not None]),
        )
        for group in by_metric.values()
    )


def _mean(measurements: Sequence[Measurement]) -> Measurement:
    values = np.array([measurement.value for measurement in measurements])
    if (values == values[0]).all():
        return measurements[0]
    return replace(measurements[0], value=float(values.mean()), spread=float(values.std(ddof=1)))
