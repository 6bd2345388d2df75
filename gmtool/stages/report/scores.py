"""Scores beside each other: what ``gmtool eval`` found of samples, and the points of sweeps, in one form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gmtool.evaluation.metrics import Better, label, metrics_by_name
from gmtool.evaluation.report import Figure, Measurement
from gmtool.evaluation.sweep_lines import floor_words
from gmtool.evaluation.sweep_table import Sweep
from gmtool.sampling.plan import SamplePlan
from gmtool.sampling.sampler import evaluations_of
from gmtool.stages.report.collection import Artifact
from gmtool.stages.report.settings_table import ABSENT, compare

RENAMED: Mapping[str, str] = {"scale": "guidance_scale", "interval": "guidance_interval"}
"""Entries of a plan by the settings that they come from."""

NOT_DRAWN_WITH = ("shift", "device", "batch_size", "workers", "decoder", "compile", "weights", "gmm")
"""Settings that do not tell sets of samples of a run apart."""


SETTLED_BY_STEPS = ("substeps", "order")
"""Settings that follow from the others where they are not given."""


@dataclass(frozen=True)
class MetricColumn:
    """A metric as a table and a plot show it."""

    name: str
    label: str
    better: Better


@dataclass(frozen=True)
class Scored:
    """Samples with scores. settings: how they were drawn, by name. evaluations: of the network for one sample. images:
    how many.
    """

    name: str
    run: str
    settings: Mapping[str, Any]
    evaluations: int
    figures: Mapping[str, Figure]
    images: int
    command: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table: the settings that differ from others', and the metrics in which it is the best."""

    scored: Scored
    settings: tuple[str, ...]
    best: frozenset[str]


@dataclass(frozen=True)
class Floors:
    """What real images reach in the place of samples, by metric. words: what they are called."""

    words: str
    values: Mapping[str, Measurement]


@dataclass(frozen=True)
class ScoreTable:
    """Samples that were compared with the same images by the same features.

    settings: the flags that differ. floors: of each number of images, where all rows of so many agree.
    """

    title: str
    columns: tuple[MetricColumn, ...]
    settings: tuple[str, ...]
    rows: tuple[Row, ...]
    floors: tuple[Floors, ...]

    def shows(self, name: str, real: Measurement) -> bool:
        """Whether the value ``real`` of real images by the metric ``name`` is among the floors."""
        return any(floors.values.get(name) == real for floors in self.floors)


def _evaluations(plan: Mapping[str, Any]) -> int:
    """Network evaluations for one sample, by a plan as it is recorded."""
    try:
        return evaluations_of(SamplePlan(**{**plan, "interval": tuple(plan["interval"])}))
    except (KeyError, TypeError):  # of another version
        return int(plan.get("steps", 0))


def drawn_with(config: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """How samples were drawn, by the names of ``gmtool sample``'s settings; resolved settings replace given ones.

    Settings that have no effect, or do not tell sets of samples apart, are left out.
    """
    settings = {**config, **{RENAMED.get(name, name): value for name, value in plan.items()}}
    for name in SETTLED_BY_STEPS:
        if config.get(name) is None:
            settings.pop(name, None)
    if settings.get("guidance") == "none":
        settings = {
            name: value for name, value in settings.items() if name not in ("guidance_scale", "guidance_interval")
        }
    return {name: value for name, value in settings.items() if name not in NOT_DRAWN_WITH}


def score_tables(samples: Sequence[Artifact], run_of: Mapping[Artifact, str]) -> tuple[ScoreTable, ...]:
    """The tables of all samples that have scores, one for each reference and features. run_of: the run's name."""
    groups: dict[tuple[str, str], list[Artifact]] = {}
    for artifact in samples:
        if artifact.scores is not None:
            groups.setdefault((artifact.scores.extractor, artifact.scores.reference_fingerprint), []).append(artifact)
    return tuple(_of_samples(group, run_of) for group in groups.values())


def _of_samples(samples: Sequence[Artifact], run_of: Mapping[Artifact, str]) -> ScoreTable:
    scored = []
    for artifact in samples:
        report, manifest = artifact.scores, artifact.manifest
        assert report is not None  # the group is of those that have one
        plan = manifest.details.get("plan", {})
        settings = drawn_with(manifest.config, plan)
        figures = _by_name(report.figures, report.features)
        images = int(manifest.details.get("count", 0))
        scored.append(Scored(artifact.name, run_of[artifact], settings, _evaluations(plan), figures, images))
    first = samples[0].scores
    assert first is not None
    title = f"{'; '.join(first.extractors.values())}, against {first.reference_kind} {first.reference}"
    return score_table(title, first.features, scored)


def sweep_table(sweep: Sweep, run_of: Mapping[str, str]) -> ScoreTable:
    """The points of a sweep as a table. run_of: the run's name, by what the sweep calls it."""
    scored = [
        Scored(
            f"point {number}",
            run_of[point.run],
            {"steps": point.plan["steps"], **point.settings, "seed": point.seed},
            point.evaluations,
            _by_name(point.figures, sweep.features),
            point.images,
            point.command,
        )
        for number, point in enumerate(sweep.points, 1)
    ]
    title = f"{sweep.extractor}, against {sweep.reference_kind} {sweep.reference}"
    return score_table(title, sweep.features, scored)


def score_table(title: str, features: str, scored: Sequence[Scored]) -> ScoreTable:
    """A table of samples that were scored alike, by run and settings; features: the extractor's name."""
    figures = {name: figure for entry in scored for name, figure in entry.figures.items()}
    columns = tuple(_column(name, figure, features) for name, figure in figures.items())
    names = list(figures)
    best = {column.name: _best(column, scored) for column in columns}
    differing = compare([entry.settings for entry in scored]).differing
    rows = [
        Row(
            entry,
            tuple(texts[index] for texts in differing.values()),
            frozenset(name for name in names if index in best[name]),
        )
        for index, entry in enumerate(scored)
    ]
    rows.sort(key=lambda row: (row.scored.run, [_sortable(text) for text in row.settings]))
    return ScoreTable(title, columns, tuple(differing), tuple(rows), _floors(names, scored))


def _by_name(figures: Iterable[Figure], features: str) -> dict[str, Figure]:
    """Figures by what their column is called: the metric, and its features where they are not the first ones."""
    known = metrics_by_name()
    return {
        figure.metric if figure.features in ("", features) else f"{figure.metric} {figure.features}": figure
        for figure in figures
        if figure.metric in known
    }


def _column(name: str, figure: Figure, features: str) -> MetricColumn:
    metric = metrics_by_name()[figure.metric]
    words = label(metric, figure.features or features)
    told = figure.features in ("", features) or words != metric.label
    return MetricColumn(name, words if told else f"{words} ({figure.features})", metric.better)


def _sortable(text: str) -> tuple[float, str]:
    """A setting as it is sorted: numbers by size, before words."""
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def _best(column: MetricColumn, scored: Sequence[Scored]) -> set[int]:
    """The indices of the best scores, if there are several."""
    values = {}
    for index, entry in enumerate(scored):
        badness = _badness(column.better, entry.figures.get(column.name))
        if badness is not None:
            values[index] = badness
    return {index for index, value in values.items() if len(values) > 1 and value == min(values.values())}


def _badness(better: Better, figure: Figure | None) -> float | None:
    """A number that is smaller for better images; None where that is not known."""
    if figure is None or (better == "" and figure.real is None):
        return None
    value = figure.generated.value
    if figure.real is not None and better == "":
        return abs(value - figure.real.value)
    return value if better == "lower" else -value


def _floors(names: Sequence[str], scored: Sequence[Scored]) -> tuple[Floors, ...]:
    """What real images reach, one line for each number of images."""
    sizes = sorted({entry.images for entry in scored})
    lines = []
    for size in sizes:
        of_size = [entry for entry in scored if entry.images == size]
        values = {name: floor for name in names if (floor := _floor(name, of_size)) is not None}
        if values:
            lines.append(Floors(floor_words(size, len(sizes)), values))
    return tuple(lines)


def _floor(name: str, scored: Sequence[Scored]) -> Measurement | None:
    """What real images reach, where all that have the metric say the same."""
    floors = {entry.figures[name].real for entry in scored if name in entry.figures}
    return floors.pop() if len(floors) == 1 else None


def short(value: float) -> str:
    """A human-readable number: four significant figures, an integer with thousands separators."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


def headline(table: ScoreTable) -> str:
    """The best by the first metric in a sentence, beside real images."""
    best = [row for row in table.rows if table.columns and table.columns[0].name in row.best]
    if not best:
        return ""
    column, row = table.columns[0], best[0]
    how = ", ".join(
        f"{name.removeprefix('--').replace('-', ' ')} {text}"
        for name, text in zip(table.settings, row.settings, strict=True)
        if text != ABSENT
    )
    floor = row.scored.figures[column.name].real
    real = "" if floor is None else f"; real images in their place reach {short(floor.value)}"
    value = row.scored.figures[column.name].generated.value
    return f"Best {column.label}: {short(value)}, by {row.scored.run}{' (' + how + ')' if how else ''}{real}."


# --- lines of a plot --------------------------------------------------------------------------------------------------

EVALUATIONS = "evaluations"
"""The axis that every plot of scores has."""


@dataclass(frozen=True)
class Line:
    """A line of a plot: points by x, those that differ in their seed alone as one; values: by metric, means of them.

    low, high: by metric, the least and the largest of them, or the ends of their intervals where these are known.
    """

    name: str
    run: str
    x: tuple[float, ...]
    values: Mapping[str, tuple[float | None, ...]]
    low: Mapping[str, tuple[float | None, ...]]
    high: Mapping[str, tuple[float | None, ...]]


def axes_of(table: ScoreTable) -> dict[str, str]:
    """What scores can be drawn over: the evaluations, and each setting of several numbers; name -> words."""
    axes = {EVALUATIONS: "network evaluations per sample"}
    for index, name in enumerate(table.settings):
        texts = {row.settings[index] for row in table.rows}
        if name not in ("--steps", "--seed") and sum(_sortable(text)[1] == "" for text in texts) > 1:
            axes[name] = name.removeprefix("--").replace("-", " ")
    return axes


def lines_of(table: ScoreTable, axis: str) -> tuple[Line, ...]:
    """All metrics of a table over an axis: one line for each run and combination of the other settings."""
    along = {"--seed", "--steps"} if axis == EVALUATIONS else {"--seed", axis}
    if axis == EVALUATIONS and len({row.scored.evaluations for row in table.rows}) == 1:
        along.discard("--steps")
    groups: dict[tuple[str, tuple[str, ...]], dict[float, list[Scored]]] = {}
    for row in table.rows:
        settings = dict(zip(table.settings, row.settings, strict=True))
        x = float(row.scored.evaluations) if axis == EVALUATIONS else _sortable(settings[axis])[0]
        if math.isfinite(x):
            apart = tuple(_words(name, text) for name, text in settings.items() if name not in along)
            groups.setdefault((row.scored.run, apart), {}).setdefault(x, []).append(row.scored)
    several = len({run for run, _ in groups}) > 1
    shared = _shared([apart for _, apart in groups])
    return tuple(
        _line(
            ", ".join(filter(None, [run if several else "", *(word for word in apart if word not in shared)])) or run,
            run,
            by_x,
            table,
        )
        for (run, apart), by_x in groups.items()
    )


def _words(name: str, text: str) -> str:
    """A setting in a legend: names speak for themselves, numbers do not; "" for what has no effect."""
    if text == ABSENT:
        return ""
    if name == "--guidance" and text == "none":
        return "unguided"
    return text if _sortable(text)[1] else f"{name.removeprefix('--').replace('-', ' ')} {text}"


def _shared(groups: Sequence[tuple[str, ...]]) -> set[str]:
    """Words that stand in every line's name, and so tell nothing."""
    return set.intersection(*map(set, groups)) if groups else set()


def _line(name: str, run: str, by_x: Mapping[float, Sequence[Scored]], table: ScoreTable) -> Line:
    xs = tuple(sorted(by_x))
    values: dict[str, tuple[float | None, ...]] = {}
    low, high = dict(values), dict(values)
    for column in table.columns:
        measurements = [
            [entry.figures[column.name].generated for entry in by_x[x] if column.name in entry.figures] for x in xs
        ]
        values[column.name] = tuple(fmean(one.value for one in at_x) if at_x else None for at_x in measurements)
        low[column.name] = tuple(min(map(_low, at_x), default=None) for at_x in measurements)
        high[column.name] = tuple(max(map(_high, at_x), default=None) for at_x in measurements)
    return Line(name, run, xs, values, low, high)


def _low(measurement: Measurement) -> float:
    return measurement.value if measurement.low is None else measurement.low


def _high(measurement: Measurement) -> float:
    return measurement.value if measurement.high is None else measurement.high
