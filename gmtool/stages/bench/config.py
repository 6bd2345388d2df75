"""Settings of ``gmtool bench``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gmtool.settings import Device, Option, check_ranges


@dataclass(frozen=True)
class BenchConfig:
    """What to measure, and for how long."""

    preset: Annotated[
        str,
        Option("Recipe to measure, by name or as a .toml file; its networks have random weights.", metavar="NAME|FILE"),
    ] = "mm-fm-imagenet256"
    num: Annotated[
        int, Option("Number of images to extrapolate to; ImageNet's by default.", metavar="N", minimum=1)
    ] = 1_281_167
    seconds: Annotated[float, Option("Minimum time per measurement, in seconds.", metavar="S", minimum=0.0)] = 3.0
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_ranges(self)
