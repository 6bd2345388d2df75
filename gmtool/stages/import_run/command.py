"""``gmtool import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gmtool.flags import with_options
from gmtool.stages.import_run.config import ImportConfig


@with_options(ImportConfig)
def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A DiTDH checkpoint of RAE or MM-FM (.pt, .safetensors, or a folder that holds one), or GMFlow's "
            "folder or hub id. Files, also those of the flags, may lie on the hub: owner/name/path/of/file.",
        ),
    ],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder to write.")] = Path("run"),
    *,
    config: ImportConfig,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be read and written; write nothing.")
    ] = False,
) -> None:
    """Turn published weights into a run, to sample and score like gmtool's own. Nothing in SOURCE is executed.

    Example: gmtool import mode-gmm-100k.pt --statistics stat.pt --gmm spatial_gmm.pkl --condition mode
    """
    from gmtool.stages.import_run.plan import prepare
    from gmtool.stages.import_run.run import import_run
    from gmtool.stages.sample.next_command import sample_command

    plan = prepare(source, run, config)
    if dry_run:
        from gmtool.console import print_forecast

        print_forecast(plan.forecast())
        return
    import_run(plan)
    print(f"{run}: {plan.words}, {plan.network.parameters:,} parameters")
    for choice in plan.network.choices:
        print(f"{choice.flag} {choice.value}: {choice.why}")
    print(f"next: {sample_command(run)} {plan.network.sampling}")
