"""Settings of ``gmtool encode``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from gmtool.settings import Device, Option, Precision, Seed, Settings
from gmtool.tokenizers.settings import TokenizerSettings


@dataclass(frozen=True)
class EncodeConfig(Settings):
    """How images become latents."""

    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    flip: Annotated[
        Literal["none", "both"],
        Option("both also encodes each image mirrored left to right, which doubles the file."),
    ] = "none"
    limit: Annotated[
        int | None,
        Option("Encode only N images, spread evenly over the folder. Default: all.", metavar="N", minimum=1),
    ] = None
    skip_bad: Annotated[bool, Option("Skip images that cannot be read, and list them, instead of stopping.")] = False
    batch_size: Annotated[int, Option("Batch size.", metavar="N", minimum=1)] = 64
    workers: Annotated[
        int | None,
        Option(
            "Processes that decode images; 0 decodes in the main one. Default: the CPU cores, at most 16.",
            metavar="N",
            minimum=0,
        ),
    ] = None
    precision: Annotated[
        Precision, Option("Arithmetic of the encoder. auto: bfloat16 on a GPU that has it, else float32.")
    ] = "auto"
    device: Device = "auto"
    seed: Seed = 0
