"""``gmtool sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmtool.flags import PresetName, with_options
from gmtool.stages.sample.config import SampleConfig


@with_options(SampleConfig)
def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that gmtool train wrote.")] = Path("run"),
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES", help="Folder to write.")] = Path("samples"),
    *,
    _preset: PresetName = None,
    config: SampleConfig,
) -> None:
    """Draw images from a run. Image i depends on the seed and i alone.

    Example: gmtool sample --steps 6 --guidance prob --guidance-scale 0.2 --num 5000
    """
    from gmtool.console import ConsoleProgress
    from gmtool.stages.sample.run import sample

    report = sample(run, samples, config, ConsoleProgress())
    plan = report.plan
    how = f"{plan.solver}, {plan.steps} steps, order {plan.order}, {plan.substeps} sub-steps"
    guided = "unguided" if plan.guidance == "none" else f"{plan.guidance} {plan.scale:g}"
    print(f"{samples}: {report.count:,} samples of step {report.step} by {how}, {guided}")
    if report.no_images is not None:
        print(f"no images: {report.no_images}")
    else:
        print(f"look at {samples / 'grid.png'}. Next: gmtool eval {samples}")
