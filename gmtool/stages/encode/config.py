"""Settings of ``gmtool encode``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gmtool.settings import Device, Option, Precision, Seed, check_ranges


@dataclass(frozen=True)
class EncodeConfig:
    """How images become latents."""

    tokenizer: Annotated[
        str,
        Option(
            "dinov2 (facebook/dinov2-with-registers-base), sd-vae (stabilityai/sd-vae-ft-ema; extra: sd-vae), pixels "
            "(patches of pixels, needs no weights), or the hub id or local folder of any DINOv2 or AutoencoderKL.",
            metavar="NAME|ID|FOLDER",
        ),
    ] = "dinov2"
    descriptor: Annotated[
        str | None,
        Option(
            "What fit-gmm clusters, for pixels and sd-vae: dinov2, or the hub id or local folder of one, takes its "
            "[CLS] token. Default: none, a summary of the image's own colours and layout.",
            metavar="NAME|ID|FOLDER",
        ),
    ] = None
    image_size: Annotated[
        int | None,
        Option(
            "Side in pixels of the centre crop. Default: 256; with pixels the short side of the first image, at most "
            "256.",
            metavar="PX",
            minimum=1,
        ),
    ] = None
    patch_size: Annotated[
        int | None,
        Option(
            "Side in pixels of a patch of the pixels tokenizer. Default: an eighth of the image size, at most 16.",
            metavar="PX",
            minimum=1,
        ),
    ] = None
    channels: Annotated[
        int | None,
        Option(
            "Colour channels of the pixels tokenizer: 1 or 3. Default: 1 when the images are grey, else 3.",
            metavar="N",
            minimum=1,
            maximum=3,
        ),
    ] = None
    flip: Annotated[
        Literal["none", "both"],
        Option("both also encodes each image mirrored left to right, which doubles the file."),
    ] = "none"
    limit: Annotated[
        int | None,
        Option("Encode only N images, spread evenly over the folder. Default: all.", metavar="N", minimum=1),
    ] = None
    skip_bad: Annotated[bool, Option("Skip images that cannot be read, and list them, instead of stopping.")] = False
    batch_size: Annotated[int, Option("Images a network call.", metavar="N", minimum=1)] = 64
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

    def __post_init__(self) -> None:
        check_ranges(self)
