"""``gmtool train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gmtool.errors import UserError
from gmtool.flags import PresetName, with_options
from gmtool.stages.train.config import TrainConfig

if TYPE_CHECKING:
    from gmtool.stages.train.forecast import Forecast


@with_options(TrainConfig)
def command(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="File that gmtool encode wrote.")] = Path(
        "latents.h5"
    ),
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder to write, or to go on with.")] = Path("run"),
    *,
    preset: PresetName = None,
    config: TrainConfig,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved settings and what the run will take; train nothing.")
    ] = False,
    price: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour",
            help="Price of an hour of this machine, for --dry-run. Default: none.",
            metavar="PRICE",
            min=0.0,
        ),
    ] = None,
) -> None:
    """Train a network on latents. The same command again goes on where the run stopped.

    Example: gmtool train --objective gm-kl --condition class
    """
    if price is not None and not dry_run:
        raise UserError("--price-per-hour belongs to --dry-run, which adds the hours up")
    if dry_run:
        _print_forecast(latents, run, config, preset, price)
        return
    from gmtool.console import ConsoleProgress
    from gmtool.stages.train.run import train

    report = train(latents, run, config, ConsoleProgress())
    print(f"{run}: {report.steps:,} steps, {report.parameters:,} parameters. Next: gmtool sample {run}")


def _print_forecast(latents: Path, run: Path, config: TrainConfig, preset: str | None, price: float | None) -> None:

    from gmtool.console import print_table
    from gmtool.settings import as_flat, as_text, flag
    from gmtool.stages.presets import load_preset
    from gmtool.stages.train.forecast import forecast

    found = forecast(latents, run, config)
    if preset is not None:
        recipe = load_preset(preset)
        print(f"{recipe.name}: {recipe.source}\nto expect: {recipe.expect}\n")
    settings = [(flag(name), as_text(value)) for name, value in as_flat(found.config).items()]
    print_table(f"{run} on {found.device}", ("setting", "value"), settings)
    print_table("what it takes", ("", ""), _forecast_rows(found, price))


def _forecast_rows(found: Forecast, price: float | None) -> list[tuple[str, str]]:
    from gmtool.artifacts.files import human_bytes
    from gmtool.console import duration

    cost, speed, seconds = found.cost, found.speed, found.seconds
    rows = [
        ("parameters", f"{cost.parameters:,}"),
        ("operations a step", f"{found.step_flops / 1e12:,.4g} TFLOP ({cost.flops / 1e9:,.4g} GFLOP an image)"),
        (f"memory, {found.micro_batch:,} images at once", f"about {human_bytes(found.memory)}"),
        ("steps", f"{found.config.steps:,}"),
        ("images a step (effective batch)", f"{found.batch:,}"),
        ("epochs", f"{found.epochs:,.3g} of {found.images:,} images"),
        *((f"reads {each.path}", human_bytes(each.bytes)) for each in found.reads),
        *((f"writes {each.path}", f"at most {human_bytes(each.bytes)}") for each in found.writes),
    ]
    if speed is None or seconds is None:
        return [*rows, ("time", "not known: `gmtool bench` measures this machine")]
    rate = f"{speed.train / 1e12:.3g} TFLOP/s, measured with {speed.network}"
    rows.append(("time", f"{duration(seconds)} at {rate}"))
    return rows if price is None else [*rows, ("cost", f"{seconds / 3600 * price:,.2f}")]
