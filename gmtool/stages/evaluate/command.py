"""``gmtool eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmtool.errors import UserError
from gmtool.flags import PresetName, with_options
from gmtool.stages.evaluate.config import EvaluateConfig


@with_options(EvaluateConfig)
def command(
    samples: Annotated[
        list[Path],
        typer.Argument(
            metavar="SAMPLES...",
            help="What to score: folders that gmtool sample wrote; folders, zips and tars of images; .npz files of "
            "images from other tools, as 8 bits or floating-point numbers, NHWC or NCHW.",
            show_default="samples",
        ),
    ] = [Path("samples")],  # noqa: B006  # typer takes no tuple here
    *,
    preset: PresetName = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="JSON file for the metrics of all samples. Default: metrics.json in a folder of samples, "
            "NAME.metrics.json beside anything else.",
            metavar="FILE",
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the metrics as JSON instead of a table, several samples as an array; everything else goes to "
            "stderr.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would be compared, and how; compute and download nothing. With --preset and no SAMPLES, "
            "these are as many as the preset draws.",
        ),
    ] = False,
    config: EvaluateConfig,
) -> None:
    """Score samples against real images.

    Each metric is shown beside its value for as many real images in the samples' place: what a perfect generator would
    reach. Several sets of samples share a table; on a terminal the best value of each metric is bold.

    Example: gmtool eval samples/ others.npz --reference validation/
    """
    from gmtool.console import ConsoleProgress, print_forecast
    from gmtool.evaluation.report import reports_to_json
    from gmtool.stages.assumed import preset_without
    from gmtool.stages.evaluate.forecast import forecast_of_imagenet
    from gmtool.stages.evaluate.plan import plan_evaluations
    from gmtool.stages.evaluate.run import evaluate_all
    from gmtool.stages.evaluate.table import print_reports

    if dry_run and json:
        raise UserError("--json prints metrics, and --dry-run computes none: remove one of them")
    if dry_run:
        recipe = preset_without(preset, *samples)
        if recipe is not None:
            for path in samples:
                print_forecast(forecast_of_imagenet(path, output, config, recipe, ConsoleProgress()))
            return
        for plan in plan_evaluations(samples, config, ConsoleProgress(), fetch=False, output=output):
            print_forecast(plan.forecast())
        return
    reports = evaluate_all(samples, config, ConsoleProgress(), output)
    if not json:
        print_reports(reports)
    elif reports:
        print(reports[0].to_json() if len(reports) == 1 else reports_to_json(reports))
