"""Training curves: what ``metrics.jsonl`` and ``throughput.jsonl`` of runs tell, thinned for a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gmtool.artifacts.files import reading
from gmtool.artifacts.run import METRICS, THROUGHPUT
from gmtool.errors import UserError

POINTS = 800
"""Points of a curve at most; longer ones are means over equal stretches of steps."""

QUARTERS = ("loss_q1", "loss_q2", "loss_q3", "loss_q4")
"""Losses in each quarter of the times; the first is that of the data."""

PANELS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Loss": ("the training loss of each step", ("loss",)),
    "Loss by time": ("the loss in each quarter of the training times, from the data's end to the noise's", QUARTERS),
    "Gradient norm": ("the norm of the gradient before it is clipped", ("grad_norm",)),
    "Learning rate": ("the learning rate of each step", ("lr",)),
    "Images/s": ("training images per second", ("images/s",)),
}
"""The panels of curves: title -> what it shows, and the figures in it."""

OTHERS = "Other figures"
"""The panel of figures that no other one shows, such as scores of samples by ``train --eval-every``."""

NUMBERS = frozenset({int, float})
"""Types of what is a figure; truth values are none."""

NOT_SHOWN = ("step", "skipped", "waiting", "TFLOP/s", "of peak")


@dataclass(frozen=True)
class Curve:
    """A figure of a run by its step: steps (n,) increasing, values (n,) finite.

    stretch: steps that a point is the mean of; 1 where all points are there. last: the value of the last step.
    """

    steps: tuple[float, ...]
    values: tuple[float, ...]
    stretch: int
    last: float


def read_curves(run: Path) -> dict[str, Curve]:
    """The curves of a run by the figures' names; none for a run without metrics.

    Raises UserError, naming the file, for one that holds no figures at all. Lines that were cut short are passed over.
    """
    curves: dict[str, Curve] = {}
    for name in (METRICS, THROUGHPUT):
        path = run / name
        if path.is_file():
            curves |= _curves(_records(path))
    return curves


def _records(path: Path) -> Iterator[Mapping[str, object]]:
    """The whole lines of a file of figures. Raises UserError where none of several is one."""
    with reading(path, "restore a copy, or leave the run out"):
        lines = path.read_text().splitlines()
    good = 0
    for line in lines:
        try:
            record = json.loads(line)
            record["step"] + 0  # TypeError for what is no record of figures
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        good += 1
        yield record
    if len(lines) > 1 and not good:
        raise UserError(f"{path} is damaged (no line holds figures): restore a copy, or leave the run out")


def _curves(records: Iterable[Mapping[str, object]]) -> dict[str, Curve]:
    """The curves of the numbers in some records; of two records of a step the later one holds."""
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for record in records:
        step = record["step"]
        for name, value in record.items():
            if name not in NOT_SHOWN and type(value) in NUMBERS and type(step) in NUMBERS:
                steps, values = columns.setdefault(name, ([], []))
                steps.append(step)  # type: ignore[arg-type]  # a number
                values.append(value)  # type: ignore[arg-type]
    curves = {
        name: _curve(np.array(steps, float), np.array(values, float)) for name, (steps, values) in columns.items()
    }
    return {name: curve for name, curve in curves.items() if curve.steps}


def _curve(steps: np.ndarray, values: np.ndarray) -> Curve:
    """A curve of `POINTS` points at most: means over stretches of equally many points, at the mean of their steps."""
    finite = np.isfinite(steps) & np.isfinite(values)
    steps, last = np.unique(steps[finite][::-1], return_index=True)
    values = values[finite][::-1][last]
    last_value = float(values[-1]) if len(values) else float("nan")
    stretch = -(-len(steps) // POINTS)
    if stretch > 1:
        edges = np.arange(0, len(steps), stretch)
        counts = np.diff([*edges, len(steps)])
        steps, values = np.add.reduceat(steps, edges) / counts, np.add.reduceat(values, edges) / counts
    return Curve(tuple(steps.tolist()), tuple(values.tolist()), stretch, last_value)


def panels_of(curves: Sequence[Mapping[str, Curve]]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The panels that some of the runs have figures for, as `PANELS`."""
    names = {name for run_curves in curves for name in run_curves}
    panels = {title: (what, figures) for title, (what, figures) in PANELS.items() if names & set(figures)}
    known = {name for _, figures in PANELS.values() for name in figures}
    others = tuple(sorted(names - known))
    return (
        {**panels, OTHERS: ("further figures of training, and scores of samples drawn meanwhile", others)}
        if others
        else panels
    )
