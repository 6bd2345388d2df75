"""The choice of a tokenizer and its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gmtool.settings import Option, Settings
from gmtool.tokenizers.table import TOKENIZERS


@dataclass(frozen=True)
class TokenizerSettings(Settings):
    """A tokenizer as a user names it. What is None depends on the images, see `gmtool.tokenizers.choose`."""

    TITLE = "Tokenizer"

    tokenizer: Annotated[
        str,
        Option(
            "; ".join(f"{name} ({row.help})" for name, row in TOKENIZERS.items())
            + "; or the hub id or local folder of any DINOv2, DINOv3, SigLIP, MAE or AutoencoderKL.",
            metavar="NAME|ID|FOLDER",
        ),
    ] = "dinov2"
    descriptor: Annotated[
        str | None,
        Option(
            "For pixels and sd-vae, the encoder whose descriptor fit-gmm clusters, by its name (dinov2, ...), hub id "
            "or local folder. Default: none; a summary of colours and layout is clustered.",
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
    layers: Annotated[
        int | None,
        Option(
            "The latent is the sum of the tokens of an encoder's last N blocks, as in RAEv2; a decoder must have been "
            "trained with the same N. Default: 1.",
            metavar="N",
            minimum=1,
        ),
    ] = None
    patch_size: Annotated[
        int | None,
        Option(
            "Side in pixels of a patch of the pixels tokenizer (train --patch-size is another one: it counts latent "
            "positions). Default: an eighth of the image size, at most 16.",
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
