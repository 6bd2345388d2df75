"""``gmtool eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.errors import UserError
from gmtool.evaluation.metrics import label, metrics_by_name
from gmtool.flags import PresetName, with_options
from gmtool.stages.evaluate.config import EvaluateConfig

if TYPE_CHECKING:
    from gmtool.evaluation.report import Measurement, Report


@with_options(EvaluateConfig)
def command(
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES", help="Folder that gmtool sample wrote.")] = Path(
        "samples"
    ),
    *,
    _preset: PresetName = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON; everything else goes to stderr.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be compared, and how; compute and download nothing.")
    ] = False,
    config: EvaluateConfig,
) -> None:
    """Score samples against real images.

    Writes metrics.json into SAMPLES. Each figure stands beside the same one of real images in the samples' place: what
    a perfect generator would reach with as many images.

    Example: gmtool eval samples/ --reference validation/
    """
    from gmtool.console import ConsoleProgress, print_forecast
    from gmtool.stages.evaluate.plan import plan_evaluation
    from gmtool.stages.evaluate.run import evaluate

    if dry_run and json:
        raise UserError("--json prints figures, of which --dry-run computes none: leave one of the two out")
    if dry_run:
        print_forecast(plan_evaluation(samples, config, ConsoleProgress(), fetch=False).forecast())
        return
    report = evaluate(samples, config, ConsoleProgress())
    if json:
        print(report.to_json())
    else:
        print_report(report)


def print_report(report: Report) -> None:
    """Print a report as a table on standard output."""
    from gmtool.console import print_table

    known = metrics_by_name()
    print_table(
        f"{report.samples} against {report.reference_kind} {report.reference} ({report.reference_fingerprint[:8]}), by "
        f"{report.extractor}",
        ("metric", "better", "samples", "images", "real against real", "images"),
        (
            (
                label(known[each.metric], report.features),
                known[each.metric].better,
                _value(each.generated),
                _counts(each.generated),
                "" if each.real is None else _value(each.real),
                "" if each.real is None else _counts(each.real),
            )
            for each in report.figures
        ),
    )


def _value(found: Measurement) -> str:
    """A value, with its spread over parts of the data if it has one: '0.0123 ± 0.0004'."""
    return f"{found.value:.4g}" + ("" if found.spread is None else f" ± {found.spread:.2g}")


def _counts(found: Measurement) -> str:
    """Images on either side: '5,000 / 10,000'; a side that is not there, or not known, is a dash."""
    return " / ".join("–" if count is None else f"{count:,}" for count in (found.images, found.reference_images))
