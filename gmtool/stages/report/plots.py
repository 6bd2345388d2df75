"""What the page's script draws: training curves, and scores over evaluations, as JSON values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gmtool.stages.report.contents import Contents, RunFacts
from gmtool.stages.report.curves import QUARTERS
from gmtool.stages.report.scores import ScoreTable, axes_of, lines_of, short
from gmtool.words import counted

FIGURE_WORDS: Mapping[str, str] = {
    "loss": "loss",
    "loss_q1": "first quarter of the times, nearest to the data",
    "loss_q2": "second quarter",
    "loss_q3": "third quarter",
    "loss_q4": "last quarter, nearest to the noise",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "images/s": "images/s",
}


def plots_of(contents: Contents, colours: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The page's plots by key, as JSON values. colours: number of each run's colour, by the run's name."""
    plots = {f"scores-{index}": _score_chart(table, colours) for index, table in enumerate(contents.tables)}
    plots |= {f"sweep-{index}": _score_chart(table, colours) for index, (_, table) in enumerate(contents.sweeps)}
    for outer, (_, figures) in enumerate(contents.panels.values()):
        for index, figure in enumerate(figures):
            plots[f"training-{outer}-{index}"] = _curve_chart(contents.runs, figure, colours)
    return plots


def _score_chart(table: ScoreTable, colours: Mapping[str, int]) -> dict[str, Any]:
    metrics = {
        column.name: {
            "label": column.label,
            "floors": [
                {"name": floors.words, "y": floors.values[column.name].value}
                for floors in table.floors
                if column.name in floors.values
            ],
        }
        for column in table.columns
    }
    axes = {}
    for axis, words in axes_of(table).items():
        lines, seen = [], Counter[str]()
        for line in lines_of(table, axis):
            fields = {
                "name": line.name,
                "run": line.run,
                "x": line.x,
                "values": line.values,
                "low": line.low,
                "high": line.high,
            }
            lines.append({**fields, "colour": colours[line.run], "dash": seen[line.run]})
            seen[line.run] += 1
        axes[axis] = {"label": words, "lines": lines}
    first = table.columns[0].label if table.columns else "Scores"
    count = len(next(iter(axes.values()))["lines"])
    alternative = f"{first} over network evaluations, {counted(count, 'line')}; the values are in the table below"
    return {
        "title": "",
        "marks": True,
        "series": [],
        "floors": [],
        "metrics": metrics,
        "axes": axes,
        "alternative": alternative,
    }


def _curve_chart(runs: Sequence[RunFacts], figure: str, colours: Mapping[str, int]) -> dict[str, Any]:
    shown = [run for run in runs if figure in run.curves]
    series = [
        {
            "name": run.artifact.name,
            "run": run.artifact.name,
            "colour": colours[run.artifact.name],
            "dash": colours[run.artifact.name] // 8,
            "x": run.curves[figure].steps,
            "y": run.curves[figure].values,
        }
        for run in shown
    ]
    label = FIGURE_WORDS.get(figure, figure.replace("_", " "))
    ends = ", ".join(f"{run.artifact.name} {short(run.curves[figure].last)}" for run in shown)
    return {
        "title": label if figure in QUARTERS else "",
        "marks": False,
        "series": series,
        "floors": [],
        "xLabel": "training step",
        "yLabel": "loss" if figure in QUARTERS else label,
        "alternative": f"{label} over training steps; at the end: {ends}",
    }
