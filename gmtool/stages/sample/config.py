"""Settings of ``gmtool sample``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gmtool.sampling.settings import SamplingSettings, SelectionSettings, WeightSettings
from gmtool.settings import Compile, Decoder, Device, NetworkPrecision, SampleBatch, Settings

SAMPLES = Path("samples")
"""The folder that is written by default."""


@dataclass(frozen=True)
class SampleConfig(Settings):
    """Weights, samples and sampler."""

    sampling: SamplingSettings = SamplingSettings()
    selection: SelectionSettings = SelectionSettings()
    weights: WeightSettings = WeightSettings()
    decoder: Decoder = None
    batch_size: SampleBatch = 64
    precision: NetworkPrecision = "auto"
    compile: Compile = False
    device: Device = "auto"
