"""What an evaluation found: each metric's value, and what is needed to compare it with another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gmtool import __version__


@dataclass(frozen=True)
class Measurement:
    """One metric between a set of images and a reference set.

    value: the metric. spread: its standard deviation over parts of the data, where it is a mean over parts. images,
    reference_images: images on either side; None when there is no such side or its file does not say.
    """

    value: float
    spread: float | None
    images: int | None
    reference_images: int | None


@dataclass(frozen=True)
class Figure:
    """One metric of generated images, and the same one of real images in their place, where the data allow it.

    metric: its name in `gmtool.evaluation.metrics`.
    """

    metric: str
    generated: Measurement
    real: Measurement | None


@dataclass(frozen=True)
class Report:
    """All figures of an evaluation.

    samples: the folder. samples_fingerprint: from its manifest. features: the extractor's name in
    `gmtool.evaluation.extractors`; extractor: exactly which. reference, reference_kind,
    reference_fingerprint: what the samples were compared with.
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
    gmtool: str = __version__

    def figure(self, metric: str) -> Figure | None:
        """The figure of one metric, or None when it was not computed."""
        return next((each for each in self.figures if each.metric == metric), None)

    def to_json(self) -> str:
        """The report as indented JSON text."""
        return json.dumps(asdict(self), indent=1)


def parse_report(text: str) -> Report:
    """The report in the JSON text that `Report.to_json` made."""
    found = json.loads(text)
    return Report(**{**found, "figures": tuple(parse_figure(each) for each in found["figures"])})


def parse_figure(values: Mapping[str, Any]) -> Figure:
    """A figure of the JSON values that ``dataclasses.asdict`` gives."""
    real = values["real"]
    return Figure(values["metric"], Measurement(**values["generated"]), real and Measurement(**real))
