"""A finished sweep on the terminal: its points in a table, and the best by every metric with its command."""

from __future__ import annotations

from gmtool.artifacts.sweep import PRECISION_RECALL, SATURATION, SCORE
from gmtool.console import print_table
from gmtool.evaluation.metrics import label, metrics_by_name
from gmtool.evaluation.sweep_lines import Group, best_of, run_names, setting_words, value_of
from gmtool.evaluation.sweep_plots import score_metrics
from gmtool.evaluation.sweep_table import RUN, Sweep, split_name
from gmtool.stages.sweep.run import SweepReport
from gmtool.words import counted

ROWS = 40
"""Points in the table at most; the best by the first score are shown."""

COLUMNS = 6
"""Metrics in the table at most."""


def print_sweep(report: SweepReport) -> None:
    """Print a sweep on standard output."""
    sweep = report.sweep
    groups, shown = sweep.groups, _shown(sweep)
    names = run_names(sweep)
    axes = [axis.setting for axis in sweep.axes]
    metrics = sweep.metrics[:COLUMNS]
    title = f"{counted(len(groups), 'point')} against {sweep.reference_kind} {sweep.reference}, by {sweep.extractor}"
    if len(shown) < len(groups):
        title += f"; the best {len(shown)}"
    print_table(
        title,
        (*(axis.replace("_", " ") for axis in axes), "evaluations", *(_label(sweep, metric) for metric in metrics)),
        (
            (
                *(names[group[0].run] if axis == RUN else str(group[0].settings.get(axis, "–")) for axis in axes),
                f"{group[0].evaluations:,}",
                *(str(value_of(group, metric) or "–") for metric in metrics),
            )
            for group in shown
        ),
    )
    for group, best in _best(sweep):
        point = group[0]
        words = [names[point.run]] if len(names) > 1 else []
        words += [point.plan["solver"], counted(point.evaluations, "evaluation")]
        words += [setting_words(point, axis) for axis in axes if axis not in (RUN, "solver", "steps")]
        scores = ", ".join(f"{_label(sweep, metric)} {value_of(group, metric)}" for metric in best)
        print(f"\nbest {scores}: {', '.join(word for word in words if word)}\n  {point.command}")
    for skipped in sweep.skipped:
        print(f"\n{skipped}")
    again = "" if report.drawn == len(sweep.points) else f" ({report.drawn:,} drawn now, the others earlier)"
    plots = [report.folder / name for name in (SCORE, PRECISION_RECALL, SATURATION) if (report.folder / name).exists()]
    look = f"; look at {plots[0]}" if plots else ""
    print(f"\n{report.folder}: {counted(len(sweep.points), 'point')}{again}{look}")


def _shown(sweep: Sweep) -> tuple[Group, ...]:
    """The groups of the table: all in their order, or the best ones where there are many."""
    scores = score_metrics(sweep)
    if len(sweep.groups) <= ROWS or not scores:
        return sweep.groups[:ROWS]
    rest = list(sweep.groups)
    shown: list[Group] = []
    while rest and len(shown) < ROWS and (best := best_of(rest, scores[0])) is not None:
        rest.remove(best)
        shown.append(best)
    return tuple(shown)


def _best(sweep: Sweep) -> list[tuple[Group, list[str]]]:
    """The groups that are best by some metric, and by which; a metric that is the same everywhere tells nothing."""
    groups = sweep.groups
    metrics_of: dict[int, list[str]] = {}
    for metric in sweep.metrics:
        values = {value.mean for group in groups if (value := value_of(group, metric)) is not None}
        best = best_of(groups, metric)
        if best is not None and (len(values) > 1 or len(groups) == 1):
            metrics_of.setdefault(groups.index(best), []).append(metric)
    return [(groups[number], metrics) for number, metrics in metrics_of.items()]


def _label(sweep: Sweep, metric: str) -> str:
    features, own = split_name(metric)
    return label(metrics_by_name()[own], features or sweep.features)
