"""Settings of ``gmtool eval``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gmtool.errors import UserError
from gmtool.evaluation.extractors import ExtractorSettings
from gmtool.evaluation.metrics import MetricSettings
from gmtool.settings import BatchSize, CacheSize, Device, Option, RealImages, Seed, Settings


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """The reference of the comparison, its features and its metrics."""

    reference: RealImages = None
    extractor: ExtractorSettings = ExtractorSettings()
    metrics: MetricSettings = MetricSettings()
    intervals: Annotated[
        int,
        Option(
            "Number of subsets of the samples, without replacement, from which to estimate 95 % intervals for other "
            "samples of the same generator; 20 is enough. 0: none.",
            metavar="N",
            minimum=0,
        ),
    ] = 0
    repeats: Annotated[
        int,
        Option(
            "Number of times that metrics are computed, each with another seed for random subsets, directions and real "
            "images; their mean and standard deviation are shown.",
            metavar="N",
            minimum=1,
        ),
    ] = 1
    nearest: Annotated[
        Path | None,
        Option(
            "Write a picture of the 24 samples most like copies of real images by the first extractor, each to the "
            "left of its nearest real image. Default: none.",
            metavar="FILE",
        ),
    ] = None
    write_reference: Annotated[
        Path | None,
        Option(
            "Write the reference as an .npz with ADM's arrays: mu and sigma of the first extractor's features, mu_s "
            "and sigma_s of Inception's spatial ones, and arr_0, at most 10,000 of the images. Default: none.",
            metavar="FILE",
        ),
    ] = None
    cache_size: CacheSize = 20.0
    trajectories: Annotated[
        int,
        Option(
            "Number of samples to draw again, without guidance, to measure path length, straightness and mean "
            "Lipschitz constant of the run's flow, and the transport distance of as many latents to real ones. 0: off.",
            metavar="N",
            minimum=0,
        ),
    ] = 0
    batch_size: BatchSize = 64
    device: Device = "auto"
    seed: Seed = 0

    def check(self) -> None:
        """See `Settings.check`."""
        if self.intervals == 1:
            raise UserError("--intervals 1: a deviation takes 2 subsets at least; 20 are enough")
