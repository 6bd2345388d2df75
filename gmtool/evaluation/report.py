"""The report of an evaluation: the value of each metric, and what is needed to compare it with another report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gmtool import __version__


@dataclass(frozen=True)
class Measurement:
    """One metric between a set of images and a reference set.

    value: the metric. spread: its standard deviation over parts of the data, where it is a mean over parts. images,
    reference_images: images on either side; None when there is no such side or its file does not say. low, high: the
    ends of a 95 % interval for other images of the same generator, where one was asked for. limit: the metric
    extrapolated to infinitely many images of it, with an interval as wide; see `gmtool.evaluation.uncertainty`.
    """

    value: float
    spread: float | None
    images: int | None
    reference_images: int | None
    low: float | None = None
    high: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Figure:
    """One metric of generated images, and the same one of real images in their place, where the data allow it.

    metric: its name in `gmtool.evaluation.metrics`. features: the name of the extractor that it is of in
    `gmtool.evaluation.extractors`; "" for one that needs no features.
    """

    metric: str
    generated: Measurement
    real: Measurement | None
    features: str = ""


@dataclass(frozen=True)
class Report:
    """All figures of an evaluation.

    samples: the folder or file. samples_fingerprint: a digest of the images, in a folder of samples its manifest's.
    features: the first extractor's name in `gmtool.evaluation.extractors`; extractor: exactly which. extractors: the
    same of all. reference, reference_kind, reference_fingerprint: what the samples were compared with.
    """

    samples: str
    samples_fingerprint: str
    features: str
    extractor: str
    reference: str
    reference_kind: str
    reference_fingerprint: str
    seed: int
    figures: tuple[Figure, ...]
    extractors: Mapping[str, str] = field(default_factory=dict)
    gmtool: str = __version__

    def figure(self, metric: str, features: str | None = None) -> Figure | None:
        """The figure of one metric, of one extractor or the first that has it; None when it was not computed."""
        return next(
            (figure for figure in self.figures if figure.metric == metric and features in (None, figure.features)), None
        )

    def to_json(self) -> str:
        """The report as indented JSON text."""
        return json.dumps(asdict(self), indent=1)


def reports_to_json(reports: tuple[Report, ...]) -> str:
    """Several reports as one indented JSON array."""
    return json.dumps([asdict(report) for report in reports], indent=1)


def parse_report(text: str) -> Report:
    """The report in the JSON text that `Report.to_json` made, also of an earlier version.

    Raises ValueError, KeyError or TypeError for another text.
    """
    values = json.loads(text)
    values.setdefault("extractors", {values["features"]: values["extractor"]})
    return Report(**{**values, "figures": tuple(parse_figure(figure) for figure in values["figures"])})


def parse_figure(values: Mapping[str, Any]) -> Figure:
    """A figure of the JSON values that ``dataclasses.asdict`` gives, also of an earlier version.

    Raises KeyError or TypeError for others.
    """
    real, features = values["real"], values.get("features", "")
    return Figure(values["metric"], Measurement(**values["generated"]), real and Measurement(**real), features)
