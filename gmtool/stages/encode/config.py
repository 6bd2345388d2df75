"""Settings of ``gmtool encode``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from gmtool.settings import Device, Option, Precision, Seed, Settings
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
    limit: Annotated[
        int | None,
        Option("Encode only N images, evenly spaced over the folder. Default: all.", metavar="N", minimum=1),
    ] = None
    skip_bad: Annotated[bool, Option("Skip and list unreadable images instead of stopping.")] = False
    batch_size: Annotated[int, Option("Batch size.", metavar="N", minimum=1)] = 64
    workers: Annotated[
        int | None,
        Option(
            "Processes that decode images; 0: the main process. Default: the number of CPU cores, at most 16.",
            metavar="N",
            minimum=0,
        ),
    ] = None
    precision: Annotated[
        Precision, Option("Precision of the encoder. auto: bfloat16 on a GPU that supports it, else float32.")
    ] = "auto"
    device: Device = "auto"
    seed: Seed = 0
