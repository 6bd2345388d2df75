"""Settings of ``gmtool quickstart``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gmtool.config.common import Device, Seed
from gmtool.config.option import Option, check_ranges


@dataclass(frozen=True)
class QuickstartConfig:
    """How long the demonstration trains and how much it draws."""

    steps: Annotated[
        int | None, Option("Training steps. Default: those of the preset quickstart.", metavar="N", minimum=1)
    ] = None
    num: Annotated[
        int | None, Option("Images to draw. Default: those of the preset quickstart.", metavar="N", minimum=2)
    ] = None
    device: Device = "auto"
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(self)
