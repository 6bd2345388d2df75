"""The points of a grid of sampling settings: which there are, and what each of them draws."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gmtool.artifacts.manifest import Input, file_fingerprint
from gmtool.artifacts.run import RunFolder
from gmtool.errors import NoEffect, UserError
from gmtool.evaluation.sweep_table import RUN, Axis, Skipped
from gmtool.sampling.drawing import Drawing, plan_drawing
from gmtool.sampling.guide import WeakerRun, open_weaker
from gmtool.sampling.sampler import evaluations_of
from gmtool.settings import as_flat, as_text, flag, make, settings_of
from gmtool.stages.sample.config import SampleConfig
from gmtool.stages.sweep.config import SweepConfig

MANY = 10_000
"""Combinations beyond which a grid is taken for a slip of the hand."""


@dataclass(frozen=True, eq=False)
class PlannedPoint:
    """A point that will be drawn from one seed.

    settings: its values of the axes, by name, without those that have no effect here. config: what ``gmtool sample``
    would be given. inputs: what the samples are made from. evaluations: of the network for one sample.
    """

    run: RunFolder
    settings: Mapping[str, Any]
    config: SampleConfig
    drawing: Drawing
    inputs: tuple[Input, ...]
    evaluations: int

    @property
    def work(self) -> int:
        """Evaluations for all samples."""
        return self.evaluations * len(self.drawing)


@dataclass(frozen=True, eq=False)
class Grid:
    """The points, those of the same weights and then those of the same settings next to each other.

    skipped: combinations that are refused. repeated: combinations that draw the same as another one.
    """

    axes: tuple[Axis, ...]
    points: tuple[PlannedPoint, ...]
    skipped: tuple[Skipped, ...]
    repeated: int


def plan_grid(config: SweepConfig, runs: Sequence[RunFolder]) -> Grid:
    """The points of all combinations of the settings' values, for every run and seed.

    A setting that has no effect in a combination is left out of it, and the same combination is drawn once; one that
    ``gmtool sample`` would refuse is skipped. Raises UserError for a value, or a run, that is left with no point.
    """
    values = _values(config)
    combinations = len(runs) * functools.reduce(
        lambda count, choices: count * len(choices), values.values(), config.seeds
    )
    if combinations > MANY:
        raise UserError(f"the grid has {combinations:,} points: give fewer values, or several sweeps")
    given: dict[str, tuple[Any, ...]] = {RUN: tuple(str(run.path) for run in runs), **values}
    names = [name for name in given if len(given[name]) > 1]
    settle = _Settler(config, names)
    points = [point for run in runs for combination in _product(values) for point in settle(run, combination)]
    if not points:
        raise UserError(settle.refused.most_common(1)[0][0])
    settle.expect_all_used(given)
    axes = tuple(Axis(name, tuple(map(_json, given[name]))) for name in names)
    skipped = tuple(Skipped(count, reason) for reason, count in settle.refused.items())
    return Grid(axes, tuple(points), skipped, settle.repeated)


def _values(config: SweepConfig) -> dict[str, tuple[Any, ...]]:
    """The values of every sampling setting that has some; the weights first, which are what takes time to change."""
    given = {
        name: value
        for grid in (config.weights, config.sampling, config.selection)
        for name, value in as_flat(grid).items()
    }
    return {name: value for name, value in given.items() if value}


def _swept(config: SweepConfig) -> set[str]:
    """The settings that may take several values."""
    return {name for grid in (config.weights, config.sampling, config.selection) for name in as_flat(grid)}


def _product(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


class _Settler:
    """Makes points of combinations, and remembers what was wrong with the others."""

    def __init__(self, config: SweepConfig, axes: Sequence[str]) -> None:
        own = as_flat(config)
        others = settings_of(SampleConfig).keys() - {"seed"} - _swept(config)
        self._shared = {name: own[name] for name in others}
        self._seeds = range(config.seed, config.seed + config.seeds)
        self._axes = axes
        self._evaluations = functools.cache(evaluations_of)
        self._fingerprint = functools.cache(file_fingerprint)
        self._guides: dict[tuple[Path, Path], WeakerRun] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._used: set[tuple[str, Any]] = set()
        self._reasons: dict[tuple[str, Any], str] = {}
        self.refused: Counter[str] = Counter()
        self.repeated = 0

    def __call__(self, run: RunFolder, combination: Mapping[str, Any]) -> list[PlannedPoint]:
        """The points of a combination of values, one per seed; none where it is refused, or was drawn before."""
        chosen = dict(combination)
        while True:
            try:
                points = [self._point(run, chosen, seed) for seed in self._seeds]
                break
            except UserError as error:
                if isinstance(error, NoEffect) and error.setting in chosen:
                    self._reasons.setdefault((error.setting, chosen.pop(error.setting)), str(error))
                    continue
                if self._is_new(run, chosen):
                    self.refused[str(error)] += len(self._seeds)
                for pair in [(RUN, str(run.path)), *chosen.items()]:
                    self._reasons.setdefault(pair, str(error))
                return []
        self._used |= {(RUN, str(run.path)), *chosen.items()}
        if self._is_new(run, chosen):
            return points
        self.repeated += len(self._seeds)
        return []

    def _is_new(self, run: RunFolder, chosen: Mapping[str, Any]) -> bool:
        """Whether these settings come up for the first time."""
        same = (run.path, *sorted((name, str(value)) for name, value in chosen.items()))
        new = same not in self._seen
        self._seen.add(same)
        return new

    def _point(self, run: RunFolder, chosen: Mapping[str, Any], seed: int) -> PlannedPoint:
        config = make(SampleConfig, {**self._shared, **chosen, "seed": seed})
        drawing = plan_drawing(run, config.sampling, config.selection, config.weights, self._weaker)
        settings = {name: _json(chosen[name]) for name in self._axes if name in chosen}
        evaluations = self._evaluations(replace(drawing.plan, seed=0, scale=0.0))  # which change none
        return PlannedPoint(run, settings, config, drawing, drawing.inputs(self._fingerprint), evaluations)

    def _weaker(self, run: RunFolder, guide: Path) -> WeakerRun:
        """The run that guides another, opened once."""
        if (run.path, guide) not in self._guides:
            self._guides[run.path, guide] = open_weaker(run, guide)
        return self._guides[run.path, guide]

    def expect_all_used(self, given: Mapping[str, Sequence[Any]]) -> None:
        """Raise UserError for a value that no point has, with the reason."""
        for name, values in given.items():
            for value in values:
                if (name, value) not in self._used:
                    what = value if name == RUN else f"{flag(name)} {as_text(value)}"
                    raise UserError(f"{what} is left without any point: {self._reasons[name, value]}")
