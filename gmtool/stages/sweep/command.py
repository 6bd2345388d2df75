"""``gmtool sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmtool.flags import PresetName, with_options
from gmtool.stages.sweep.config import SweepConfig


@with_options(SweepConfig)
def command(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN... [SWEEP]",
            help="Folders that gmtool train wrote; the last of several is the folder to write, unless it is a run.",
            show_default="run",
        ),
    ] = [Path("run")],  # noqa: B006  # typer takes no tuple here
    *,
    _preset: PresetName = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Folder to write, if every path above is a run. Default: the last path if it is no run, else sweep.",
            metavar="SWEEP",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the points and an estimate of the time, from one batch; write nothing.",
        ),
    ] = False,
    config: SweepConfig,
) -> None:
    """Draw and score a grid of sampling settings: one table, its plots, and the best point with its command.

    Every sampling flag takes several values: separated by commas, or as FIRST:LAST:COUNT. A setting that has no effect
    in a combination is left out of it; combinations that gmtool sample would refuse are skipped and counted. The same
    command again resumes point by point, and a larger grid draws only what is new.

    Example: gmtool sweep run/ sweep/ --steps 1,2,4,8 --guidance prob --guidance-scale 0:0.45:10 --seeds 3
    """
    from gmtool.console import ConsoleProgress, print_forecast
    from gmtool.stages.sweep.estimate import seconds_of_sweep
    from gmtool.stages.sweep.plan import plan_sweep
    from gmtool.stages.sweep.report import print_sweep
    from gmtool.stages.sweep.run import sweep

    if dry_run:
        plan = plan_sweep(paths, output, config, ConsoleProgress(), fetch=False)
        print_forecast(plan.forecast(seconds_of_sweep(plan)))
        return
    print_sweep(sweep(paths, output, config, ConsoleProgress()))
