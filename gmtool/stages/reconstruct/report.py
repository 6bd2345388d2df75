"""The report of ``reconstruct``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gmtool import __version__
from gmtool.evaluation.metrics import Better

LABELS: Mapping[str, str] = {"psnr": "PSNR (dB)", "ssim": "SSIM", "l1": "L1 of [0, 1]", "lpips": "LPIPS (VGG16)"}
BETTER: Mapping[str, Better] = {"psnr": "higher", "ssim": "higher", "l1": "lower", "lpips": "lower"}
"""Labels and directions of the metrics of single images, by name."""


@dataclass(frozen=True)
class Quality:
    """A figure of images: its mean and standard deviation over them."""

    mean: float
    std: float


@dataclass(frozen=True)
class FeatureDistance:
    """The Fréchet distance between the features of images and of their reconstructions."""

    extractor: str
    value: float


@dataclass(frozen=True)
class WorstImage:
    """An image that is reconstructed badly, and its figures."""

    name: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class ReconstructionReport:
    """All figures.

    images, count: where they are, and how many. tokenizer, decoder: what reconstructs them. qualities: by name.
    statistics: the mean square of latents normalised by them, by their source. worst: by ``worst_by``, the worst first.
    """

    images: str
    count: int
    tokenizer: str
    decoder: str | None
    qualities: Mapping[str, Quality]
    distances: tuple[FeatureDistance, ...]
    statistics: Mapping[str, float]
    worst_by: str
    worst: tuple[WorstImage, ...]
    gmtool: str = __version__

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(asdict(self), indent=1)


def parse_reconstruction(details: Mapping[str, Any]) -> ReconstructionReport:
    """The report in the details of a manifest. Raises KeyError or TypeError for those of something else."""
    return ReconstructionReport(
        **{
            **details,
            "qualities": {name: Quality(**values) for name, values in details["qualities"].items()},
            "distances": tuple(FeatureDistance(**values) for values in details["distances"]),
            "worst": tuple(WorstImage(**values) for values in details["worst"]),
        }
    )
