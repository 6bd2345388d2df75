"""The reports of an evaluation as a table on standard output."""

from __future__ import annotations

from collections.abc import Sequence

from gmtool.console import print_table
from gmtool.evaluation.metrics import Better, label, metrics_by_name
from gmtool.evaluation.report import Figure, Measurement, Report


def print_reports(reports: Sequence[Report]) -> None:
    """Print one report with all that is in it, or several beside each other."""
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
                _label(each, report),
                metrics[each.metric].better,
                _value(each.generated),
                _counts(each.generated),
                "" if each.real is None else _value(each.real),
                "" if each.real is None else _counts(each.real),
            )
            for each in report.figures
        ),
    )


def _print_several(reports: Sequence[Report]) -> None:
    """A column a report; the real-against-real value is the first report's that has one."""
    metrics = metrics_by_name()
    found = {(each.metric, each.features): each for report in reports for each in report.figures}
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    for (metric, features), some in found.items():
        figures = [report.figure(metric, features) for report in reports]
        values = [None if each is None else each.generated.value for each in figures]
        bold |= {(len(rows), 2 + index) for index in best_of(values, metrics[metric].better)}
        shown = ["–" if each is None else _value(each.generated) for each in figures]
        real = next((each.real for each in figures if each is not None and each.real is not None), None)
        rows.append((_label(some, reports[0]), metrics[metric].better, *shown, "" if real is None else _value(real)))
    print_table(
        _title(f"{len(reports)} sets of samples", reports[0]),
        ("metric", "better", *(report.samples for report in reports), "real against real"),
        rows,
        bold,
    )


def best_of(values: Sequence[float | None], better: Better) -> frozenset[int]:
    """The numbers of the best among several values; none where no direction is better, or there is one value alone."""
    known = [each for each in values if each is not None]
    if not better or len(known) < 2:
        return frozenset()
    best = min(known) if better == "lower" else max(known)
    return frozenset(index for index, each in enumerate(values) if each == best)


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


def _value(found: Measurement) -> str:
    """A value, with its spread over parts of the data and interval, if it has them: '0.012 ± 0.001 [0.01, 0.02]'."""
    spread = "" if found.spread is None else f" ± {found.spread:.2g}"
    interval = "" if found.low is None or found.high is None else f" [{found.low:.3g}, {found.high:.3g}]"
    return f"{found.value:.4g}{spread}{interval}"


def _counts(found: Measurement) -> str:
    """Images on either side: '5,000 / 10,000'; a side that is not there, or not known, is a dash."""
    return " / ".join("–" if count is None else f"{count:,}" for count in (found.images, found.reference_images))
