"""Settings of ``gmtool likelihood``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gmtool.sampling.settings import WeightSettings
from gmtool.settings import BatchSize, Device, Option, Seed, Settings

RESULT = Path("likelihood.json")
"""The file that is written by default."""


@dataclass(frozen=True)
class LikelihoodConfig(Settings):
    """Weights, amount of data and accuracy."""

    weight: WeightSettings = WeightSettings()
    num: Annotated[
        int, Option("Most images to use (of a latents file, rows), evenly spaced.", metavar="N", minimum=1)
    ] = 1000
    probes: Annotated[
        int,
        Option(
            "Random vectors per image in Hutchinson's estimate of the divergence, each of which costs a backward pass. "
            "The estimate is unbiased; more vectors reduce its noise on single images.",
            metavar="N",
            minimum=1,
        ),
    ] = 1
    tolerance: Annotated[
        float,
        Option("Absolute and relative tolerance of the ODE solver.", metavar="SIZE", minimum=1e-9, maximum=0.1),
    ] = 1e-4
    times: Annotated[
        int,
        Option(
            "Number of times per image at which the NLL of the velocity is computed, one in each of N equal intervals.",
            metavar="N",
            minimum=1,
        ),
    ] = 8
    batch_size: BatchSize = 64
    device: Device = "auto"
    seed: Seed = 0
