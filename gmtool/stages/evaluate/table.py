"""The reports of an evaluation as a table on standard output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from gmtool.console import print_table
from gmtool.evaluation.metrics import Better, label, metrics_by_name
from gmtool.evaluation.report import Figure, Measurement, Report

ARROWS: Mapping[Better, str] = {"lower": "\N{NO-BREAK SPACE}↓", "higher": "\N{NO-BREAK SPACE}↑", "": ""}
"""Behind a metric's name: which values are better."""


def print_reports(reports: Sequence[Report]) -> None:
    """Print one report in full, or several side by side, as a table on standard output."""
    if len(reports) == 1:
        _print_one(reports[0])
    elif reports:
        _print_several(reports)


def _print_one(report: Report) -> None:
    metrics = metrics_by_name()
    print_table(
        _title(report.samples, report),
        ("metric", "better", "samples", "images", "real against real", "images"),
        (
            (
                _label(figure, report),
                metrics[figure.metric].better,
                _value(figure.generated),
                _counts(figure.generated),
                "" if figure.real is None else _value(figure.real),
                "" if figure.real is None else _counts(figure.real),
            )
            for figure in report.figures
        ),
    )
    limits = [
        f"{_label(figure, report)} {value.limit:.4g} ± {value.high - value.value:.2g}"
        for figure in report.figures
        if (value := figure.generated).limit is not None and value.high is not None
    ]
    if limits:
        print(f"extrapolated to infinitely many samples: {', '.join(limits)}")


def _print_several(reports: Sequence[Report]) -> None:
    """A column a report; the real-against-real value is the first report's that has one.

    Arrows stand in the place of a column that says which is better: a terminal is narrow for many reports.
    """
    metrics = metrics_by_name()
    distinct = {(figure.metric, figure.features): figure for report in reports for figure in report.figures}
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    for (metric, features), some in distinct.items():
        figures = [report.figure(metric, features) for report in reports]
        values = [None if figure is None else figure.generated.value for figure in figures]
        bold |= {(len(rows), 1 + index) for index in best_of(values, metrics[metric].better)}
        shown = ["–" if figure is None else _value(figure.generated) for figure in figures]
        real = next((figure.real for figure in figures if figure is not None and figure.real is not None), None)
        name = _label(some, reports[0]) + ARROWS[metrics[metric].better]
        rows.append((name, *shown, "" if real is None else _value(real)))
    paths = [Path(report.samples) for report in reports]
    together = len({path.parent for path in paths}) == 1  # their names alone leave more of a narrow terminal to values
    print_table(
        _title(f"{len(reports)} sets of samples{f' in {paths[0].parent}' if together else ''}", reports[0]),
        ("metric", *(path.name if together else str(path) for path in paths), "real against real"),
        rows,
        bold,
    )


def best_of(values: Sequence[float | None], better: Better) -> frozenset[int]:
    """The indices of the best values; none where no direction is better, or only one value is known."""
    known = [value for value in values if value is not None]
    if not better or len(known) < 2:
        return frozenset()
    best = min(known) if better == "lower" else max(known)
    return frozenset(index for index, value in enumerate(values) if value == best)


def _title(whose: str, report: Report) -> str:
    return (
        f"{whose} against {report.reference_kind} {report.reference} ({report.reference_fingerprint[:8]}), by "
        f"{'; '.join(report.extractors.values())}"
    )


def _label(figure: Figure, report: Report) -> str:
    """What a metric is called; with its features where there are several."""
    metric = metrics_by_name()[figure.metric]
    name = label(metric, figure.features)
    several = len(report.extractors) > 1 and figure.features and name == metric.label
    return f"{name} ({figure.features})" if several else name


def _value(measurement: Measurement) -> str:
    """A value, with its spread over parts of the data and interval, if it has them: '0.012 ± 0.001 [0.01, 0.02]'."""
    spread = "" if measurement.spread is None else f" ± {measurement.spread:.2g}"
    interval = (
        ""
        if measurement.low is None or measurement.high is None
        else f" [{measurement.low:.3g}, {measurement.high:.3g}]"
    )
    return f"{rounded(measurement.value, measurement.spread)}{spread}{interval}"


def rounded(value: float, spread: float | None) -> str:
    """A value to four digits, and to no digit below the second of its spread: 0.0006557 with 0.00131 is 0.0007."""
    if not spread or not math.isfinite(spread):
        return f"{value:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(spread)))
    return min(f"{value:.{decimals}f}", f"{value:.4g}", key=len)


def _counts(measurement: Measurement) -> str:
    """Images on either side: '5,000 / 10,000'; a side that is not there, or not known, is a dash."""
    return " / ".join(
        "–" if count is None else f"{count:,}" for count in (measurement.images, measurement.reference_images)
    )
