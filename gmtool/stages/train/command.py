"""``gmtool train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmtool.flags import HourlyPrice, PresetName, expect_dry_run, with_options
from gmtool.stages.train.config import TrainConfig


@with_options(TrainConfig)
def command(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="File that gmtool encode wrote.")] = Path(
        "latents.h5"
    ),
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder to write, or to resume.")] = Path("run"),
    *,
    preset: PresetName = None,
    config: TrainConfig,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved settings, parameters, FLOPs, memory and time; train nothing. With --preset and no "
            "LATENTS, the estimate is for ImageNet.",
        ),
    ] = False,
    price: HourlyPrice = None,
) -> None:
    """Train a network on latents. Run the same command again to resume.

    Example: gmtool train --objective gm-kl --condition class
    """
    expect_dry_run(price, dry_run)
    if dry_run:
        _print_forecast(latents, run, config, preset, price)
        return
    from gmtool.console import ConsoleProgress
    from gmtool.stages.sample.next_command import sample_command
    from gmtool.stages.train.run import train
    from gmtool.words import counted

    report = train(latents, run, config, ConsoleProgress())
    steps = counted(report.steps, "step")
    print(f"{run}: {steps}, {report.parameters:,} parameters. Next: {sample_command(run)}")


def _print_forecast(latents: Path, run: Path, config: TrainConfig, preset: str | None, price: float | None) -> None:
    from gmtool.console import print_forecast
    from gmtool.stages.presets import load_preset
    from gmtool.stages.train.forecast import forecast

    recipe = None if preset is None else load_preset(preset)
    expected = forecast(latents, run, config, recipe)
    if recipe is not None:
        print(recipe.heading)
    print_forecast(expected, price)
