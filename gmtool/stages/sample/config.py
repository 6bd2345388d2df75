"""Settings of ``gmtool sample``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gmtool.sampling.settings import SamplingSettings, SelectionSettings, WeightSettings
from gmtool.settings import Compile, Decoder, Device, Option, Precision, Settings


@dataclass(frozen=True)
class SampleConfig(Settings):
    """Which samples of which weights are drawn how."""

    sampling: SamplingSettings = SamplingSettings()
    selection: SelectionSettings = SelectionSettings()
    weights: WeightSettings = WeightSettings()
    decoder: Decoder = None
    batch_size: Annotated[int, Option("Batch size; it does not change the images.", metavar="N", minimum=1)] = 64
    precision: Annotated[
        Precision, Option("Precision of the network. auto: bfloat16 on a GPU that supports it, else float32.")
    ] = "auto"
    compile: Compile = False
    device: Device = "auto"
