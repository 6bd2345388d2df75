"""Settings of ``gmtool reconstruct``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from gmtool.errors import UserError
from gmtool.evaluation.extractors import ExtractorSettings
from gmtool.reconstruction.settings import LpipsWeights
from gmtool.settings import (
    BatchSize,
    Decoder,
    Device,
    EncoderPrecision,
    ImageLimit,
    ImageWorkers,
    Option,
    Settings,
    SkipBad,
)
from gmtool.tokenizers.settings import TokenizerSettings


@dataclass(frozen=True)
class ReconstructConfig(Settings):
    """Images, tokenizer and decoder, and the metrics of the reconstructions."""

    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    extractor: ExtractorSettings = ExtractorSettings()
    decoder: Decoder = None
    statistics: Annotated[
        Path | None,
        Option(
            "Also check that these statistics belong to the latents: a latents file, a run, or a stat.pt of RAE. "
            "Default: those of the decoder's own configuration, where it has any.",
            metavar="PATH",
        ),
    ] = None
    limit: ImageLimit = None
    skip_bad: SkipBad = False
    perceptual: Annotated[
        Literal["auto", "lpips", "none"],
        Option("LPIPS: lpips, none, or auto (if its weights are on disk or download within seconds)."),
    ] = "auto"
    lpips_weights: LpipsWeights = None
    pairs: Annotated[int, Option("Number of pairs in each grid.", metavar="N", minimum=1, maximum=400)] = 16
    batch_size: BatchSize = 32
    workers: ImageWorkers = None
    precision: EncoderPrecision = "auto"
    device: Device = "auto"

    def check(self) -> None:
        """See `Settings.check`."""
        if self.perceptual == "none" and self.lpips_weights is not None:
            raise UserError("--lpips-weights has no effect with --perceptual none: remove one of them")
        if self.tokenizer.descriptor is not None:
            raise UserError("--descriptor describes images for fit-gmm; reconstructions do not depend on it: remove it")

    @property
    def wants_lpips(self) -> bool:
        """Whether LPIPS was asked for explicitly."""
        return self.perceptual == "lpips" or self.lpips_weights is not None
