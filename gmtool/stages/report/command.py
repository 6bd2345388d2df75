"""``gmtool report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmtool.flags import with_options
from gmtool.stages.report.config import ReportConfig


@with_options(ReportConfig)
def command(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATHS... [REPORT.html]",
            help="Runs, samples, sweeps, mixtures, latents, or folders that hold them; last, the page to write. "
            "Default: the current folder, and report.html.",
            show_default=False,
        ),
    ] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be shown; write nothing.")] = False,
    config: ReportConfig,
) -> None:
    """Show runs, samples, scores and sweeps on one page, a single self-contained HTML file.

    Example: gmtool report run/ samples/ report.html
    """
    import datetime

    from gmtool.console import ConsoleProgress, print_forecast
    from gmtool.stages.report.plan import plan_report
    from gmtool.stages.report.run import report
    from gmtool.words import counted, human_bytes

    given = paths or []
    if dry_run:
        print_forecast(plan_report(given, config).forecast())
        return
    page = report(given, config, ConsoleProgress(), datetime.date.today())
    left_out = f", {page.left_out} left out" if page.left_out else ""
    print(f"wrote {page.path}: {counted(page.artifacts, 'artifact')}{left_out}, {human_bytes(page.bytes)}")
