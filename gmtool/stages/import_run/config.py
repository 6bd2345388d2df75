"""Settings of ``gmtool import``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gmtool.flow.names import Condition
from gmtool.settings import Option, Settings


@dataclass(frozen=True)
class ImportConfig(Settings):
    """What a published network's own files do not tell. None stands for what lies beside them, or is published.

    A file may also be one of a hub repository: owner/name/path/of/file.
    """

    statistics: Annotated[
        Path | None,
        Option("RAE's stat.pt, mean and variance of the latents. Default: the stat.pt beside SOURCE.", metavar="FILE"),
    ] = None
    gmm: Annotated[
        Path | None,
        Option(
            "MM-FM's mixture in patch space (.pkl), the source of the flow. Default: the spatial_gmm*.pkl beside "
            "SOURCE, or else a Gaussian source.",
            metavar="FILE",
        ),
    ] = None
    cls_gmm: Annotated[
        Path | None,
        Option("MM-FM's mixture over [CLS] tokens (.pkl), kept with the other. Default: none.", metavar="FILE"),
    ] = None
    condition: Annotated[
        Condition | None,
        Option(
            "What the labels of a DiTDH are; none if it does not use them. Default: class if there are labels and no "
            "mixture, none if there are no labels; otherwise required."
        ),
    ] = None
    tokenizer: Annotated[
        str | None,
        Option(
            "Hub id or folder of the encoder of the latents: DINOv2, SigLIP 2 or MAE for a DiTDH, an AutoencoderKL for "
            "a GM-DiT. Default: facebook/dinov2-with-registers-base; the vae/ in SOURCE or stabilityai/sd-vae-ft-ema.",
            metavar="ID|FOLDER",
        ),
    ] = None
    time_shift: Annotated[
        float | None,
        Option(
            "s of the time shift. Default: for a DiTDH sqrt(entries of a latent / 4096), at least 1, as in RAE and "
            "MM-FM; for a GM-DiT its scheduler's.",
            metavar="S",
            minimum=1e-3,
        ),
    ] = None
