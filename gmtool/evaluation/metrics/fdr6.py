"""FDr6 (Yang et al. 2026, arXiv 2604.28190): the mean of six Fréchet distances, each over that of real images.

(1/6) sum_k FD_k / V_k, over Inception and the five networks of `gmtool.evaluation.extractors.timm_encoders`. V_k is the
published distance of ImageNet's validation images, at 256 px, from its training images: 1 is about what unseen real
images reach there. On other data the V_k remain what they are, weights that make six scales comparable, and what real
images reach stands beside the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from gmtool.evaluation.metric import Context
from gmtool.evaluation.report import Figure, Measurement

NORMALISERS: Mapping[str, float] = {
    "inception": 1.68,
    "fdr-convnext": 56.87,
    "fdr-dinov2": 14.19,
    "fdr-mae": 0.04,
    "fdr-siglip": 0.60,
    "fdr-clip": 5.60,
}
"""V_k by extractor, to the published digits (github.com/Jiawei-Yang/FD-Loss)."""


def measure(known: Mapping[str, Measurement], _: Context) -> tuple[Measurement]:
    """See `gmtool.evaluation.metric.Measure`. known: the distance on each extractor's features."""
    value = fdr6({name: measurement.value for name, measurement in known.items()})
    return (Measurement(value, None, known["inception"].images, known["inception"].reference_images),)


def fdr6(values: Mapping[str, float]) -> float:
    """FDr6 of the distances by extractor; see the module."""
    return fmean(values[name] / normaliser for name, normaliser in NORMALISERS.items())


def of_subsets(distances: Mapping[str, Sequence[Measurement]], context: Context) -> list[Measurement] | None:
    """FDr6 of R subsets of the samples, from their R distances by extractor; None unless all six are there."""
    if not set(NORMALISERS) <= set(distances):
        return None
    return [
        measure(dict(zip(distances, of_subset, strict=True)), context)[0]
        for of_subset in zip(*distances.values(), strict=True)
    ]


def distances(figures: Sequence[Figure], real: bool = False) -> Mapping[str, Measurement] | None:
    """The distances among figures by extractor, of generated or of real images; None unless all six are there."""
    chosen = {
        figure.features: measurement
        for figure in figures
        if figure.metric == "frechet_distance"
        and (measurement := figure.real if real else figure.generated) is not None
    }
    return chosen if set(NORMALISERS) <= set(chosen) else None
