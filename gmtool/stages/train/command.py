"""``gmtool train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmtool.errors import UserError
from gmtool.flags import PresetName, with_options
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
    price: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour",
            help="Price per hour of this machine, for the cost in --dry-run. Default: none.",
            metavar="PRICE",
            min=0.0,
        ),
    ] = None,
) -> None:
    """Train a network on latents. Run the same command again to resume.

    Example: gmtool train --objective gm-kl --condition class
    """
    if price is not None and not dry_run:
        raise UserError("--price-per-hour has no effect without --dry-run: add --dry-run or remove it")
    if dry_run:
        _print_forecast(latents, run, config, preset, price)
        return
    from gmtool.console import ConsoleProgress
    from gmtool.stages.train.run import train

    report = train(latents, run, config, ConsoleProgress())
    print(f"{run}: {report.steps:,} steps, {report.parameters:,} parameters. Next: gmtool sample {run}")


def _print_forecast(latents: Path, run: Path, config: TrainConfig, preset: str | None, price: float | None) -> None:
    from gmtool.console import print_forecast
    from gmtool.stages.presets import load_preset
    from gmtool.stages.train.forecast import forecast

    recipe = None if preset is None else load_preset(preset)
    expected = forecast(latents, run, config, None if recipe is None else recipe.settings, price)
    if recipe is not None:
        print(f"{recipe.name}: {recipe.source}\nto expect: {recipe.expect}\n")
    print_forecast(expected)
