"""Settings of ``gmtool bench``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gmtool.settings import Device, Option, check_ranges


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and for how long."""

    preset: Annotated[
        str,
        Option("The recipe that is measured, by name or as a .toml file, with random weights.", metavar="NAME|FILE"),
    ] = "mm-fm-imagenet256"
    images: Annotated[int, Option("Images that the answer is for; ImageNet's by default.", metavar="N", minimum=1)] = (
        1_281_167
    )
    seconds: Annotated[float, Option("Time for each measurement, at least.", metavar="S", minimum=0.0)] = 3.0
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_ranges(self)
