"""Settings of ``gmtool sweep``: those of ``gmtool sample``, of several values each, and those of ``gmtool eval``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gmtool.evaluation.extractors import ExtractorSettings
from gmtool.evaluation.metrics import MetricSettings
from gmtool.grid import several
from gmtool.sampling.settings import SamplingSettings, SelectionSettings, WeightSettings
from gmtool.settings import (
    CacheSize,
    Compile,
    Decoder,
    Device,
    NetworkPrecision,
    Option,
    RealImages,
    SampleBatch,
    Seed,
    Settings,
)


class SamplingGrid(several(SamplingSettings)):  # type: ignore[misc]  # made when it is imported, as those below
    """Solvers and guidance of the grid."""


class SelectionGrid(several(SelectionSettings, without=("seed",))):  # type: ignore[misc]
    """Samples of the grid."""


class WeightGrid(several(WeightSettings)):  # type: ignore[misc]
    """Weights of the grid."""


@dataclass(frozen=True)
class SweepConfig(Settings):
    """The values of each sampling setting, and how the samples are scored."""

    sampling: SamplingGrid = SamplingGrid()
    selection: SelectionGrid = SelectionGrid()
    weights: WeightGrid = WeightGrid()
    seeds: Annotated[
        int,
        Option("Number of seeds per point of the grid: --seed and those that follow it.", metavar="N", minimum=1),
    ] = 1
    seed: Seed = 0
    reference: RealImages = None
    extractor: ExtractorSettings = ExtractorSettings()
    metrics: MetricSettings = MetricSettings()
    cache_size: CacheSize = 20.0
    decoder: Decoder = None
    batch_size: SampleBatch = 64
    precision: NetworkPrecision = "auto"
    compile: Compile = False
    device: Device = "auto"
