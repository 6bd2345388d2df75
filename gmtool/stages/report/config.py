"""Settings of ``gmtool report``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gmtool.settings import Option, Settings


@dataclass(frozen=True)
class ReportConfig(Settings):
    """Title, contents and maximum size of the page."""

    title: Annotated[
        str | None, Option("Title of the page. Default: the name of the folder shown.", metavar="TEXT")
    ] = None
    previews: Annotated[
        int, Option("Number of preview grids to show per run, evenly spaced in training.", metavar="N", minimum=1)
    ] = 12
    real: Annotated[bool, Option("Show real images of the same classes beside the samples, if they still exist.")] = (
        True
    )
    max_size: Annotated[
        float,
        Option(
            "Maximum size of the page in MB (10^6 bytes); pictures are reduced to fit.",
            metavar="MB",
            minimum=0.5,
        ),
    ] = 5.0
