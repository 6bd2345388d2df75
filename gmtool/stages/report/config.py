"""Settings of ``gmtool report``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gmtool.settings import Option, Settings


@dataclass(frozen=True)
class ReportConfig(Settings):
    """What the page is called, and how large it may be."""

    title: Annotated[
        str | None, Option("Title of the page. Default: the name of the folder that it is about.", metavar="TEXT")
    ] = None
    previews: Annotated[
        int, Option("Preview grids of a run that are shown, evenly spaced in training.", metavar="N", minimum=1)
    ] = 12
    real: Annotated[
        bool, Option("Show real images of the same classes beside the samples, where they are still there.")
    ] = True
    size: Annotated[
        float,
        Option(
            "Largest size of the page in MB (10^6 bytes); where the pictures take more, they are made smaller.",
            metavar="MB",
            minimum=0.5,
        ),
    ] = 5.0
