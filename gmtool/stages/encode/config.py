"""Settings of ``gmtool encode``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from gmtool.settings import (
    BatchSize,
    Device,
    EncoderPrecision,
    ImageLimit,
    ImageWorkers,
    Option,
    Seed,
    Settings,
    SkipBad,
)
from gmtool.tokenizers.settings import TokenizerSettings


@dataclass(frozen=True)
class EncodeConfig(Settings):
    """How images are encoded."""

    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    flip: Annotated[
        Literal["none", "both", "random"],
        Option(
            "both: also encode each image mirrored left to right, which doubles the file. random: mirror a random half "
            "of the images."
        ),
    ] = "none"
    limit: ImageLimit = None
    skip_bad: SkipBad = False
    batch_size: BatchSize = 64
    workers: ImageWorkers = None
    precision: EncoderPrecision = "auto"
    device: Device = "auto"
    seed: Seed = 0
