"""Settings of ``gmtool eval``."""

from __future__ import annotations

from dataclasses import dataclass
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
