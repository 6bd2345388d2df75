"""``gmtool bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.flags import with_options
from gmtool.stages.bench.config import BenchConfig

if TYPE_CHECKING:
    from gmtool.stages.bench.run import BenchReport, StageRate


@with_options(BenchConfig)
def command(
    *,
    json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON; everything else goes to stderr.")
    ] = False,
    config: BenchConfig,
) -> None:
    """Benchmark this machine with a recipe's networks and estimate the time for ImageNet, stage by stage.

    The training throughput is recorded, and gmtool train --dry-run uses it to estimate the time of a run.

    Example: gmtool bench --preset gmflow-imagenet256
    """
    from gmtool.console import ConsoleProgress
    from gmtool.stages.bench.run import bench

    report = bench(config, ConsoleProgress())
    if json:
        print(report.to_json())
    else:
        _print_report(report)


def _print_report(report: BenchReport) -> None:
    from gmtool.console import print_table
    from gmtool.words import duration

    limit = f"matrix products at {report.matmul / 1e12:.3g} TFLOP/s"
    print_table(
        f"{report.preset} on {report.device}, {report.precision}; {limit}",
        ("stage", "per second", f"{report.images:,} images", "note"),
        (
            (measurement.stage, _rate(measurement), duration(measurement.seconds), measurement.note)
            for measurement in report.measurements
        ),
    )


def _rate(measurement: StageRate) -> str:
    return (
        f"{measurement.rate:,.0f} {measurement.unit}"
        if measurement.rate >= 100
        else f"{measurement.rate:.3g} {measurement.unit}"
    )
