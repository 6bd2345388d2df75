"""``gmtool sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmtool.flags import PresetName, with_options
from gmtool.settings import quoted
from gmtool.stages.sample.config import SAMPLES, SampleConfig


@with_options(SampleConfig)
def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that gmtool train wrote.")] = Path("run"),
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES", help="Folder to write.")] = SAMPLES,
    *,
    preset: PresetName = None,
    config: SampleConfig,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would be drawn, and how; draw nothing. With --preset and no RUN, it is the one that the "
            "preset trains on ImageNet.",
        ),
    ] = False,
) -> None:
    """Draw images from a run. Image i depends only on the seed and i.

    Example: gmtool sample --steps 6 --guidance prob --guidance-scale 0.2 --num 5000
    """
    from gmtool.console import ConsoleProgress, print_forecast
    from gmtool.stages.assumed import preset_without
    from gmtool.stages.sample.forecast import forecast_of_imagenet
    from gmtool.stages.sample.run import plan_samples, sample
    from gmtool.words import counted

    if dry_run:
        recipe = preset_without(preset, run)
        print_forecast(
            plan_samples(run, samples, config).forecast()
            if recipe is None
            else forecast_of_imagenet(run, samples, config, recipe)
        )
        return
    report = sample(run, samples, config, ConsoleProgress())
    print(f"{samples}: {counted(report.count, 'sample')} of step {report.step:,} by {report.plan.words}")
    if report.no_images is not None:
        print(f"no images: {report.no_images}")
    else:
        reference = "" if report.has_reference else " --reference IMAGES"
        print(f"look at {samples / 'grid.png'}. Next: gmtool eval {quoted(samples)}{reference}")
