"""``gmtool train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmtool.cli.options import PresetName, with_options
from gmtool.config.train import TrainConfig


@with_options(TrainConfig)
def command(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="File that gmtool encode wrote.")] = Path(
        "latents.h5"
    ),
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder to write, or to go on with.")] = Path("run"),
    *,
    _preset: PresetName = None,
    config: TrainConfig,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved settings and the network's size; train nothing.")
    ] = False,
) -> None:
    """Train a network on latents. The same command again goes on where the run stopped.

    Example: gmtool train --objective gm-kl --condition class
    """
    from dataclasses import asdict

    from gmtool.cli.console import ConsoleProgress, print_table
    from gmtool.config.option import as_text, flag
    from gmtool.stages.train import train

    report = train(latents, run, config, ConsoleProgress(), dry_run)
    if dry_run:
        rows = [(flag(name), as_text(value)) for name, value in asdict(report.config).items()]
        print_table(f"{run}: {report.parameters:,} parameters", ("setting", "value"), rows)
        return
    print(f"{run}: {report.steps:,} steps, {report.parameters:,} parameters. Next: gmtool sample {run}")
