"""Settings of ``gmtool eval``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gmtool.evaluation.extractors import ExtractorSettings
from gmtool.evaluation.metrics import MetricSettings
from gmtool.settings import Device, Option, RealImages, Seed, Settings


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """What samples are compared with, by which features and metrics."""

    reference: RealImages = None
    extractor: ExtractorSettings = ExtractorSettings()
    metrics: MetricSettings = MetricSettings()
    write_reference: Annotated[
        Path | None,
        Option(
            "Write the reference as an .npz with ADM's arrays: mu and sigma of the first extractor's features, mu_s "
            "and sigma_s of Inception's spatial ones, and arr_0, at most 10,000 of the images. Default: none.",
            metavar="FILE",
        ),
    ] = None
    cache_size: Annotated[
        float,
        Option(
            "Room for features that are kept between runs, so that the same images are not extracted twice, in "
            "~/.cache/gmtool (or GMTOOL_CACHE); those not used for longest are removed; 0 for none.",
            metavar="GIB",
            minimum=0,
        ),
    ] = 20.0
    trajectories: Annotated[
        int,
        Option(
            "Samples whose paths are followed once more, without guidance, for length, straightness and mean Lipschitz "
            "constant of the run's flow, and for the transport distance of as many latents to real ones; 0 for none.",
            metavar="N",
            minimum=0,
        ),
    ] = 0
    batch_size: Annotated[int, Option("Batch size.", metavar="N", minimum=1)] = 64
    device: Device = "auto"
    seed: Seed = 0
