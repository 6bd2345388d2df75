"""Settings of ``gmtool eval``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gmtool.errors import UserError
from gmtool.settings import Device, Option, Seed, check_ranges


@dataclass(frozen=True)
class EvaluateConfig:
    """What samples are compared with, and by which features."""

    reference: Annotated[
        Path | None,
        Option(
            "Real images: a folder or archive, a latents file, or an .npz of images or of mu and sigma. Default: the "
            "images that the run was trained on.",
            metavar="PATH",
        ),
    ] = None
    features: Annotated[
        Literal["auto", "inception", "tokenizer"],
        Option(
            "Feature extractor: inception (FID, IS, KID, precision, recall as published), tokenizer (the run's own "
            "descriptors, no download), auto (inception when its weights are at hand or come within seconds)."
        ),
    ] = "auto"
    inception_weights: Annotated[
        Path | None,
        Option("File of the Inception weights that torch-fidelity uses. Default: its own download.", metavar="FILE"),
    ] = None
    neighbours: Annotated[int, Option("Neighbours of the precision / recall manifolds.", metavar="K", minimum=1)] = 3
    trajectories: Annotated[
        int,
        Option(
            "Samples whose paths are followed once more, without guidance, for length, straightness and mean Lipschitz "
            "constant of the run's flow, and for the transport distance of as many latents to real ones; 0 for none.",
            metavar="N",
            minimum=0,
        ),
    ] = 0
    batch_size: Annotated[int, Option("Images a network call.", metavar="N", minimum=1)] = 64
    device: Device = "auto"
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.inception_weights is not None and self.features == "tokenizer":
            raise UserError("--inception-weights has no effect with --features tokenizer: leave one of the two out")
