"""The metrics of ``gmtool eval``, a file and a row each: the report, its order and its table follow from `METRICS`.

To add one, write a file with a function `gmtool.evaluation.metric.Measure`, and a row that names it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from gmtool.settings import Option, Settings

if TYPE_CHECKING:
    from gmtool.evaluation.metric import Measure

Need = Literal["statistics", "spatial", "features", "training", "logits", "distances", "images", "latents", "paths"]
"""A field of `gmtool.evaluation.metric.Known`."""

Better = Literal["lower", "higher", ""]

Resampling = Literal["halves", "jackknife"]
"""How an interval is estimated: see `gmtool.evaluation.uncertainty`."""


@dataclass(frozen=True)
class MetricSettings(Settings):
    """Settings of the metrics."""

    TITLE: ClassVar[str] = "Metrics"

    neighbours: Annotated[
        int,
        Option(
            "Number of nearest neighbours in precision and recall; published values on ImageNet (ADM, GMFlow) use 3.",
            metavar="K",
            minimum=1,
        ),
    ] = 3


@dataclass(frozen=True)
class Metric:
    """One number.

    name: in metrics.json. label: human-readable; names: its names on the features of some extractors, as pairs of
    extractor and label. better: the direction of better images; "" where neither is, but nearness to the value of real
    images. least, most: the ends of its range.
    """

    name: str
    label: str
    better: Better
    names: tuple[tuple[str, str], ...] = ()
    least: float = 0.0
    most: float = math.inf


@dataclass(frozen=True)
class Row:
    """The metrics that one function computes together.

    function: "module:function", a `gmtool.evaluation.metric.Measure`, imported when it is used. needs: what it is
    given. library: whether it is torch-fidelity's, without which it is left out. only: the extractors whose features it
    is defined on; empty for all. resampling: how its intervals are estimated.
    """

    function: str
    needs: Need
    metrics: tuple[Metric, ...]
    library: bool = False
    only: tuple[str, ...] = ()
    resampling: Resampling = "halves"

    def defined_on(self, features: str) -> bool:
        """Whether the metrics are defined on the features of an extractor."""
        return not self.only or features in self.only

    def load(self) -> Measure:
        """The function."""
        module, _, name = self.function.partition(":")
        measure: Measure = getattr(import_module(module), name)
        return measure


HERE = "gmtool.evaluation.metrics"

METRICS: tuple[Row, ...] = (
    Row(
        f"{HERE}.frechet_distance:measure",
        "statistics",
        (Metric("frechet_distance", "Fréchet distance", "lower", (("inception", "FID"), ("dinov2", "FD-DINOv2"))),),
        resampling="jackknife",
    ),
    Row(
        f"{HERE}.frechet_distance:measure",
        "spatial",
        (Metric("spatial_frechet_distance", "sFID", "lower"),),
        resampling="jackknife",
    ),
    Row(
        f"{HERE}.inception_score:measure",
        "logits",
        (Metric("inception_score", "Inception score", "higher"),),
    ),
    Row(
        f"{HERE}.kernel_distance:measure",
        "features",
        (Metric("kernel_distance", "kernel distance", "lower", (("inception", "KID"),), least=-math.inf),),
        library=True,
    ),
    Row(
        f"{HERE}.precision_recall:measure",
        "features",
        (Metric("precision", "precision", "higher", most=1), Metric("recall", "recall", "higher", most=1)),
    ),
    Row(
        f"{HERE}.density_coverage:measure",
        "features",
        (Metric("density", "density", "higher"), Metric("coverage", "coverage", "higher", most=1)),
    ),
    Row(f"{HERE}.mind:measure", "features", (Metric("mind", "MIND", "lower"),)),
    Row(f"{HERE}.cmmd:measure", "features", (Metric("cmmd", "CMMD", "lower"),), only=("clip",)),
    Row(f"{HERE}.memorisation:measure", "training", (Metric("memorisation", "memorised share", "", most=1),)),
    Row(f"{HERE}.fdr6:measure", "distances", (Metric("fdr6", "FDr6", "lower"),), resampling="jackknife"),
    Row(
        f"{HERE}.saturation:measure",
        "images",
        (
            Metric("magnitude", "mean magnitude", ""),
            Metric("saturated_share", "saturated share", ""),
            Metric("colour_saturation", "colour saturation (HSV)", ""),
        ),
    ),
    Row(
        f"{HERE}.flow_paths:measure",
        "paths",
        (
            Metric("path_length", "path length", "lower"),
            Metric("straightness", "straightness", "lower"),
            Metric("lipschitz", "mean Lipschitz constant", "lower"),
        ),
    ),
    Row(
        f"{HERE}.transport:measure",
        "latents",
        (
            Metric("transport", "W2^2 of latents", "lower"),
            Metric("sliced_transport", "sliced W2^2 of latents", "lower"),
        ),
    ),
)


def metrics_by_name() -> Mapping[str, Metric]:
    """Every metric, by its name in metrics.json."""
    return {metric.name: metric for row in METRICS for metric in row.metrics}


def label(metric: Metric, features: str) -> str:
    """The human-readable name of a metric on the features of an extractor."""
    return dict(metric.names).get(features, metric.label)
