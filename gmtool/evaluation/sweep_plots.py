"""The plots of a sweep: score against evaluations, precision against recall, saturation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gmtool.artifacts.sweep import PRECISION_RECALL, SATURATION, SCORE
from gmtool.evaluation.metrics import label, metrics_by_name
from gmtool.evaluation.sweep_lines import (
    EVALUATIONS,
    MANY,
    SCALE,
    Line,
    Value,
    floor_words,
    floors_of,
    lines,
    position_of,
    value_of,
)
from gmtool.evaluation.sweep_table import Sweep, split_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SATURATIONS = ("magnitude", "saturated_share", "colour_saturation")
"""Metrics of the plot of saturation, a panel each."""

DECADE = 5.0
"""The largest value over the smallest one beyond which a score is drawn on a logarithmic axis."""

MARKED = 4
"""Places along a line of precision and recall that are marked with their value, at most."""

FLOOR_LINES, FLOOR_MARKS = ("dashed", "dotted", "dashdot", (0, (8, 2))), "*PXD"
"""Line and marker styles of real images, by their number."""


def draw_sweep(sweep: Sweep, folder: Path) -> tuple[Path, ...]:
    """Draw every plot that the figures of a sweep allow into a folder; return the files."""
    drawn = []
    for name, draw in ((SCORE, _draw_score), (PRECISION_RECALL, _draw_tradeoff), (SATURATION, _draw_saturation)):
        figure = draw(sweep)
        if figure is not None:
            figure.savefig(folder / name, format="png", dpi=120, metadata={"Software": "gmtool sweep"})
            drawn.append(folder / name)
    return tuple(drawn)


def score_metrics(sweep: Sweep) -> tuple[str, ...]:
    """The main metric of a sweep: its first one that is lower for better images, on each extractor's features."""
    known = metrics_by_name()
    metrics = [name for name in sweep.metrics if known[split_name(name)[1]].better == "lower"]
    return tuple(name for name in metrics if split_name(name)[1] == split_name(metrics[0])[1])


def along_of(sweep: Sweep) -> str:
    """The x axis of precision, recall and saturation: the guidance scale if it has several values, else evaluations."""
    return SCALE if sweep.axis(SCALE) is not None else EVALUATIONS


def _draw_score(sweep: Sweep) -> Figure | None:
    metrics = score_metrics(sweep)
    if not metrics:
        return None
    every = lines(sweep, EVALUATIONS)
    figure, panels = _figure(len(metrics))
    for axes, metric in zip(panels, metrics, strict=True):
        shown = lines(sweep, EVALUATIONS, metric)
        _draw_lines(axes, shown, EVALUATIONS, metric)
        _draw_floor(axes, sweep, metric)
        _scale_evaluations(axes, shown)
        _scale_score(axes, shown, metric)
        chosen = "" if len(every) == len(shown) else ", at the best of the other settings"
        axes.set(ylabel=_name(sweep, metric) + chosen)
    _legend(panels[-1])
    return figure


def _draw_tradeoff(sweep: Sweep) -> Figure | None:
    if not {"precision", "recall"} <= set(sweep.metrics):
        return None
    along = along_of(sweep)
    figure, (axes,) = _figure(1)
    for number, line in enumerate(lines(sweep, along, "precision")):
        _draw_pairs(axes, line, along, _colour(number))
    recalls, precisions = floors_of(sweep, "recall"), floors_of(sweep, "precision")
    for number, images in enumerate(sorted(set(recalls) & set(precisions))):
        place, words = (recalls[images], precisions[images]), floor_words(images, len(recalls))
        axes.plot(*place, linestyle="none", color="black", marker=FLOOR_MARKS[number % 4], markersize=9, label=words)
    axes.set(xlabel="recall", ylabel="precision", title=f"along the {_words(along)}", box_aspect=1)
    _legend(axes)
    return figure


def _draw_pairs(axes: Axes, line: Line, along: str, colour: str) -> None:
    """Precision against recall along a line, with spreads; some of its places are marked."""
    values = [(group, value_of(group, "recall"), value_of(group, "precision")) for group in line.groups]
    pairs = [(group, recall, precision) for group, recall, precision in values if recall and precision]
    axes.errorbar(
        [recall.mean for _, recall, _ in pairs],
        [precision.mean for _, _, precision in pairs],
        xerr=[recall.spread or 0.0 for _, recall, _ in pairs],
        yerr=[precision.spread or 0.0 for _, _, precision in pairs],
        color=colour,
        marker="o",
        markersize=3,
        elinewidth=0.6,
        label=line.label,
    )
    if len(pairs) > 1:
        for group, recall, precision in pairs[:: -(-len(pairs) // MARKED)]:
            position = position_of(group, along)
            place = "none" if position is None else f"{position:g}"
            where = (recall.mean, precision.mean)
            axes.annotate(place, where, (3, 3), textcoords="offset points", fontsize="x-small", color=colour)


def _draw_saturation(sweep: Sweep) -> Figure | None:
    shown = [metric for metric in SATURATIONS if metric in sweep.metrics and not _is_zero(sweep, metric)]
    if not shown:
        return None
    along = along_of(sweep)
    figure, panels = _figure(len(shown))
    for axes, metric in zip(panels, shown, strict=True):
        drawn = lines(sweep, along, metric)
        _draw_lines(axes, drawn, along, metric)
        _draw_floor(axes, sweep, metric)
        if along == EVALUATIONS:
            _scale_evaluations(axes, drawn)
        axes.set(xlabel=_words(along), ylabel=_name(sweep, metric))
    _legend(panels[-1])
    return figure


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure  # without pyplot, which would look for a display

    figure = Figure(figsize=(1.5 + 5 * panels, 4.2), layout="constrained")
    return figure, [figure.add_subplot(1, panels, 1 + number) for number in range(panels)]


def _draw_lines(axes: Axes, drawn: tuple[Line, ...], along: str, metric: str) -> None:
    """A line each, its spread over seeds as a band; what has no place along the axis as a dotted line."""
    for number, line in enumerate(drawn):
        colour, points = _colour(number), _points(line, along, metric)
        placed = [(place, value) for place, value in points if place is not None]
        if placed:
            x, means = [place for place, _ in placed], [value.mean for _, value in placed]
            spreads = [value.spread or 0.0 for _, value in placed]
            axes.plot(x, means, marker="o", markersize=3.5, color=colour, label=line.label)
            low, high = (
                [mean + sign * spread for mean, spread in zip(means, spreads, strict=True)] for sign in (-1, 1)
            )
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        else:
            axes.axhline(points[0][1].mean, color=colour, linestyle="dotted", label=line.label)


def _points(line: Line, along: str, metric: str) -> list[tuple[float | None, Value]]:
    points = [(position_of(group, along), value_of(group, metric)) for group in line.groups]
    return [(place, value) for place, value in points if value is not None]


def _draw_floor(axes: Axes, sweep: Sweep, metric: str) -> None:
    floors = floors_of(sweep, metric)
    for number, (images, floor) in enumerate(floors.items()):
        words = floor_words(images, len(floors))
        axes.axhline(floor, color="black", linestyle=FLOOR_LINES[number % 4], linewidth=1, label=words)


def _scale_evaluations(axes: Axes, drawn: tuple[Line, ...]) -> None:
    ticks = sorted({int(group[0].evaluations) for line in drawn for group in line.groups})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations per sample")


def _scale_score(axes: Axes, drawn: tuple[Line, ...], metric: str) -> None:
    values = [value.mean for line in drawn for _, value in _points(line, EVALUATIONS, metric)]
    if min(values) > 0 and max(values) > DECADE * min(values):
        axes.set_yscale("log")


def _is_zero(sweep: Sweep, metric: str) -> bool:
    """Whether all images are at 0, as the colour of grey ones is."""
    return all(figure.generated.value == 0 for point in sweep.points if (figure := point.figure(metric)) is not None)


def _colour(number: int) -> str:
    return f"C{number % 10}"


def _legend(axes: Axes) -> None:
    """Beside the plot where it has many entries."""
    many = len(axes.get_legend_handles_labels()[1]) > MANY // 2
    if many:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        axes.legend(fontsize="small")


def _name(sweep: Sweep, metric: str) -> str:
    features, own = split_name(metric)
    return label(metrics_by_name()[own], features or sweep.features)


def _words(along: str) -> str:
    return {SCALE: "guidance scale", EVALUATIONS: "network evaluations per sample"}[along]
