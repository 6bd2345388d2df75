"""``gmtool distill``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmtool.flags import HourlyPrice, PresetName, expect_dry_run, with_options
from gmtool.stages.distill.config import DistillConfig


@with_options(DistillConfig)
def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The teacher: a folder that gmtool train wrote.")] = Path(
        "run"
    ),
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="Folder to write, or to resume.")] = Path(
        "student"
    ),
    *,
    _preset: PresetName = None,
    config: DistillConfig,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved settings, memory and time; train nothing."),
    ] = False,
    price: HourlyPrice = None,
) -> None:
    """Train a student that samples in one or a few network evaluations what a run samples in many.

    Run the same command again to resume.

    Example: gmtool distill run student --evaluations 1 --guidance cfg --guidance-scale 2.7 --guidance-interval 0,0.6
    """
    from gmtool.console import ConsoleProgress, print_forecast
    from gmtool.stages.distill.run import distill, forecast
    from gmtool.stages.sample.next_command import sample_command
    from gmtool.words import counted

    expect_dry_run(price, dry_run)
    if dry_run:
        print_forecast(forecast(run, student, config), price)
        return
    report = distill(run, student, config, ConsoleProgress())
    following = sample_command(student, default=False)
    print(f"{student}: {counted(report.steps, 'step')}, {report.parameters:,} parameters. Next: {following}")
