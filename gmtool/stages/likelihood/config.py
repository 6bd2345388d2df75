"""Settings of ``gmtool likelihood``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gmtool.sampling.settings import WeightSettings
from gmtool.settings import Device, Option, Seed, Settings


@dataclass(frozen=True)
class LikelihoodConfig(Settings):
    """Which weights, on how much data, and how exactly."""

    weight: WeightSettings = WeightSettings()
    num: Annotated[int, Option("Images, evenly spaced, of which there may be fewer.", metavar="N", minimum=1)] = 1000
    probes: Annotated[
        int,
        Option(
            "Random vectors per image that the divergence is estimated with (Hutchinson); more cost as many backward "
            "passes, and lessen the noise of single images, not a bias.",
            metavar="N",
            minimum=1,
        ),
    ] = 1
    tolerance: Annotated[
        float,
        Option("Absolute and relative tolerance of a step of the ODE.", metavar="SIZE", minimum=1e-9, maximum=0.1),
    ] = 1e-4
    times: Annotated[
        int,
        Option(
            "Times per image, one in each of as many equal intervals, of the NLL of the velocity.",
            metavar="N",
            minimum=1,
        ),
    ] = 8
    batch_size: Annotated[int, Option("Batch size.", metavar="N", minimum=1)] = 64
    device: Device = "auto"
    seed: Seed = 0
